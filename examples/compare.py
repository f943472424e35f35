# %% [markdown]
# # Compare plug-ins
#
# The same narrow ResNet with several plug-ins, without one first, trained by one recipe: what each costs, and how it
# learns. Differences of a few images are noise: `visionattn compare` trains with several seeds and tests for
# significance.

# %%
import time

import matplotlib.pyplot as plt
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

import visionattn  # noqa: F401  (registers the networks)
from visionattn.profiling.cost import count_macs

NAMES = ("va_resnet10n", "va_resnet10n_cbam", "va_resnet10n_ela_l", "va_resnet10n_simam")
digits = load_digits()
pictures = F.interpolate(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), 16)
labels = torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 4


def train(model, epochs):
    """Yields the share of right answers on the digits held out after each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    x, y = pictures[~held_out], labels[~held_out]
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            yield (model.eval()(pictures[held_out]).argmax(1) == labels[held_out]).float().mean().item()


# %%
curves = {}
print(f"{'network':22}{'parameters':>12}{'MACs (M)':>10}{'seconds':>9}{'right':>8}")
for name in NAMES:
    torch.manual_seed(0)
    macs = count_macs(timm.create_model(name, in_chans=1, num_classes=10, device="meta"), (1, 16, 16))
    model = timm.create_model(name, in_chans=1, num_classes=10)
    start = time.perf_counter()
    curves[name] = list(train(model, 3))
    seconds = time.perf_counter() - start
    params = sum(p.numel() for p in model.parameters())
    print(f"{name:22}{params:12,}{macs / 1e6:10.2f}{seconds:9.1f}{curves[name][-1]:8.1%}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, curve in curves.items():
    axes.plot(range(1, len(curve) + 1), curve, marker="o", label=name)
axes.set(xlabel="epoch", ylabel="share of right answers", xticks=range(1, len(curve) + 1))
axes.legend()
figure.savefig("learning.png", dpi=100)
picture = Image.open("learning.png")
picture

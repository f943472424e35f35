# %% [markdown]
# # Attach attention to a network that is there
#
# `attach` puts a plug-in into each residual block, keeps the weights and starts as an exact identity.

# %%
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import visionattn

digits = load_digits()
pictures = F.interpolate(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), 32)
labels = torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 4


def train(model, epochs, rate):
    """Trains on four of five digits; returns the share of the others that it tells."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    x, y = pictures[~held_out], labels[~held_out]
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return (model.eval()(pictures[held_out]).argmax(1) == labels[held_out]).float().mean().item()


torch.manual_seed(0)
model = timm.create_model("va_resnet10n", in_chans=1, num_classes=10)  # any CNN; pretrained=True keeps its weights
print(f"without attention {train(model, 2, 2e-3):.1%}")

# %% [markdown]
# Nothing is lost at step 0: the outputs are equal bit for bit.

# %%
with torch.no_grad():
    before = model(pictures[held_out])
    visionattn.attach(model, "ela_l")
    assert torch.equal(model.eval()(pictures[held_out]), before)
print(model.attached)

# %%
print(f"with attention {train(model, 2, 1e-3):.1%}")

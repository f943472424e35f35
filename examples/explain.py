# %% [markdown]
# # Where does it look?
#
# Gates of a CNN with CBAM and the attention of a transformer of windows, both trained on handwritten digits; their
# weights travel with the package.

# %%
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

import visionattn
from visionattn.explain import draw

digits = load_digits()
chosen = [0, 1, 2, 3, 5, 8]
grey = torch.tensor(digits.images[chosen, None] / 16, dtype=torch.float32)
seen = [(F.interpolate(g[None], 128)[0].permute(1, 2, 0).repeat(1, 1, 3) * 255).byte().numpy() for g in grey]


def batch(model):
    """The digits as a network wants them."""
    cfg = model.pretrained_cfg
    x = F.interpolate(grey, cfg["input_size"][1:], mode="bilinear").repeat(1, 3, 1, 1)
    return (x - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)


def shown(maps):
    """Maps laid over the digits, side by side."""
    pairs = zip(seen, maps, strict=True)
    names = [str(digits.target[number]) for number in chosen]
    return Image.fromarray(draw.grid([draw.overlay(s, m) for s, m in pairs], names, columns=len(chosen)))


# %% [markdown]
# ## Gates of a plug-in
#
# `gates` gives every factor by the block's name and its own: here the spatial gate of the first CBAM.

# %%
cnn = timm.create_model("va_resnet10n_cbam.digits", pretrained=True).eval()
factors = visionattn.explain.gates(cnn, batch(cnn))
print({name: {key: tuple(gate.shape) for key, gate in found.items()} for name, found in factors.items()})
first = next(iter(factors.values()))["spatial"][:, 0]
picture = shown(first)
picture.save("gates.png")
picture

# %% [markdown]
# ## Attention of a transformer
#
# `capture` records the attention of a forward pass and leaves its outputs as they were. `map` places what one pixel's
# token sees in the picture, whatever windows lie between.

# %%
vit = timm.create_model("va_stm_swin_nano.digits", pretrained=True).eval()
x = batch(vit)
with torch.no_grad(), visionattn.explain.capture(vit) as record:
    vit(x)
print(record)
middle = x.shape[-1] // 2
picture = shown(record.map(0, query=(middle, middle)).mean(1))
picture.save("attention.png")
picture

# %% [markdown]
# # Replace attention in a vision transformer
#
# A small ViT of timm learns handwritten digits with softmax attention; then linear attention takes over the projections
# of its last two blocks, and the network goes on learning.

# %%
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import visionattn

digits = load_digits()
pictures = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 4


def score(model):
    """The share of the digits held out that a network tells."""
    with torch.no_grad():
        return (model.eval()(pictures[held_out]).argmax(1) == labels[held_out]).float().mean().item()


def train(model, epochs):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, y = pictures[~held_out], labels[~held_out]
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return score(model)


torch.manual_seed(0)
vit = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=48, depth=4, num_heads=3
)
print(f"softmax attention {train(vit, 16):.1%}")

# %%
visionattn.replace_attention(vit, "linear", blocks=[-2, -1])  # weights="keep": it takes over qkv and proj
print(vit.replaced)
print(f"linear attention in two blocks, untrained {score(vit):.1%}")

# %%
print(f"after training it {train(vit, 4):.1%}")

# %% [markdown]
# Mixers that have no place for softmax attention's projections start with weights of their own.

# %%
visionattn.replace_attention(vit, "pool", blocks=[0], weights="new")
print(f"with a block of average pooling {train(vit, 4):.1%}")

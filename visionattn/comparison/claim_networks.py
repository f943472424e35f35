"""Small networks for claims about mixers, and how they are trained and tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import get
from visionattn.heads import CoAttention
from visionattn.models.hosts.columnar import Columnar

from .claim_tasks import Task
from .stems import conv_stem

__all__ = ["Mixer", "Recipe", "TwoPictures", "accuracy", "fit", "network", "rotary"]

# Name of a mixer and its options.
Mixer = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """How long a network is trained.

    Args:
        steps: Of the optimiser.
        rate: The highest learning rate, after a fifth of the steps.
        batch: Pictures in a step.
    """

    steps: int
    rate: float = 4e-3
    batch: int = 64

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.batch} pictures at {self.rate:g}"


def network(
    mixers: Sequence[Mixer],
    *,
    dim: int = 32,
    heads: int = 4,
    dense: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A plain vision transformer with a mixer a block, of 10 classes or of answers for each token.

    Args:
        mixers: Name and options of each block's mixer.
        dim: Width.
        heads: Heads, where a mixer has any.
        dense: Whether it answers for each token.
        **kwargs: As `Columnar`.
    """

    def build(context: Any, **dd: Any) -> dict[str, nn.Module]:
        name, options = mixers[context.block]
        made = get("mixer", name).constructor
        taken = {"num_heads": heads} if name not in ("chela", "mega") else {}
        return {"attn": made(dim, **{**taken, **options}, **dd)}

    settings = {"in_chans": 1, "num_classes": 10, "patch_size": 2, "img_size": 8, **kwargs}
    if not dense:
        return Columnar(dim, len(mixers), heads, mixers=build, **settings)
    classes = settings.pop("num_classes")
    body = Columnar(dim, len(mixers), heads, mixers=build, num_classes=0, **settings)
    return Dense(body, nn.Conv2d(dim, classes, 1))


class Dense(nn.Module):
    """Answers for each token. `(B, in_chans, H, W) -> (B, classes, H', W')`."""

    def __init__(self, body: Columnar, head: nn.Conv2d) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body.forward_features(x))


class TwoPictures(nn.Module):
    """Whether two pictures `(B, 2, H, W)` show the same: `CoAttention` or the means of both. `-> (B, 2)`."""

    def __init__(self, joint: bool, dim: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, out, stride in ((1, dim // 2, 1), (dim // 2, dim, 2), (dim, dim, 1), (dim, dim, 1)):
            layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.fuse = CoAttention(dim) if joint else None
        self.head = nn.Sequential(nn.Linear(4 * dim if joint else 2 * dim, 64), nn.GELU())
        self.classify = nn.Linear(64, 2)

    def tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The patches of both, `(B, N, C)` each."""
        first, second = (self.stem(picture).flatten(2).mT for picture in x.split(1, 1))
        return first, second

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """The attention of the patches of the first to those of the second, `(B, N, N)`."""
        if self.fuse is None:
            raise ValueError("a network without co-attention has no attention to show")
        return self.fuse(*self.tokens(x))[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.tokens(x)
        if self.fuse is None:
            return self.classify(self.head(torch.cat((a.mean(1), b.mean(1)), 1)))
        return self.classify(self.head(self.fuse(a, b)[0]).mean(1))


def rotary(side: int = 16) -> nn.Module:
    """A network as `network` makes, of two blocks with timm's attention with rotary embeddings."""
    sizes: dict[str, Any] = {"img_size": side, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "num_heads": 4}
    model: Any = timm.create_model(
        "vit_small_patch16_rope_224", **sizes, depth=2, num_classes=10, dynamic_img_size=True
    )
    model.patch_embed.proj = ChannelsFirst(conv_stem(1, 32, patch_size=2))
    return model


class ChannelsFirst(nn.Sequential):
    """Layers of channels-last maps in a network of channels-first ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def fit(model: nn.Module, task: Task, recipe: Recipe, seed: int) -> nn.Module:
    """Trains a network on pictures in an order of a seed: AdamW, one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, recipe.steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(recipe.steps):
        numbers = torch.randint(len(task[0]), (recipe.batch,), generator=generator)
        loss = F.cross_entropy(model(task[0][numbers]), task[1][numbers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """Share of right answers in %, of those that were asked for."""
    model.eval()
    asked = task[1] != -100
    found = torch.cat([model(x).argmax(1) for x in task[0].split(100)])
    return 100 * (found == task[1])[asked].float().mean().item()

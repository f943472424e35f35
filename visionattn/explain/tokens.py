"""The tokens of a network: extra tokens, the one that the classifier reads, and the grid of the patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Tokens", "inner_network", "patch_of", "tokens"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a network for images of one size.

    Args:
        prefix: Number of tokens before those of the image: class token, distillation token, registers.
        class_row: The prefix token that the classifier reads; none if it pools the image's tokens.
        grid: `(H, W)` of the first stage's tokens; none if the network does not say how it cuts patches.
        patch: Height and width of a patch, likewise.
    """

    prefix: int
    class_row: int | None
    grid: tuple[int, int] | None
    patch: tuple[int, int] | None


def tokens(model: nn.Module, size: Sequence[int]) -> Tokens:
    """Describes the tokens of a network of timm or of this package.

    Args:
        model: The network; or a detector, segmentor or feature extractor with one inside, whose class token nobody
            reads.
        size: `(H, W)` of its images.
    """
    network = inner_network(model)
    has_class = any(name.startswith("cls_token") for name, _ in network.named_parameters(recurse=False))
    has_class = has_class or getattr(network, "cls_token", None) is not None
    prefix = getattr(network, "num_prefix_tokens", None)
    prefix = int(has_class) if prefix is None else int(prefix)
    pool = getattr(network, "global_pool", "token" if has_class else "avg")
    reads_class = network is model and has_class and prefix > 0 and pool in ("token", "cls", "")
    patch = patch_of(getattr(network, "patch_embed", None)) or patch_of(network)
    grid = None if patch is None else (-(-size[0] // patch[0]), -(-size[1] // patch[1]))
    return Tokens(prefix, 0 if reads_class else None, grid, patch)


def inner_network(model: Any) -> Any:
    """The network of timm's itself, or the one within a task of ours or a feature extractor of timm's."""
    for name in () if hasattr(model, "forward_features") else ("backbone", "network", "model"):
        if isinstance(part := getattr(model, name, None), nn.Module):
            return inner_network(part)
    return model


def patch_of(module: Any) -> tuple[int, int] | None:
    """Height and width of the patches of a module, if it states them."""
    size = getattr(module, "patch_size", None)
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return (size[0], size[1])
    return None

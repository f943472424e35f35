"""Where the parameters of a module are made, and of what type."""

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch

__all__ = ["FactoryKwargs"]


class FactoryKwargs(TypedDict, total=False):
    """The keywords that every constructor ends in and hands on as `**dd`.

    Args:
        device: Of the parameters and buffers.
        dtype: Of those with fractions.
    """

    device: "torch.device | str | None"
    dtype: "torch.dtype | None"

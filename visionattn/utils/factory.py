"""Device and dtype of a module's parameters."""

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch

__all__ = ["FactoryKwargs"]


class FactoryKwargs(TypedDict, total=False):
    """The keywords that every constructor accepts last and passes on as `**dd`.

    Args:
        device: Of the parameters and buffers.
        dtype: Of those with fractions.
    """

    device: "torch.device | str | None"
    dtype: "torch.dtype | None"

"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

from .lkca import LargeKernelConvAttention

__all__ = ["LargeKernelConvAttention"]

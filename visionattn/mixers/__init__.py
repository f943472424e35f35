"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

from .flatten import FocusedLinearAttention

__all__ = ["FocusedLinearAttention"]

"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

from .boat import FeatureSpaceLocalAttention

__all__ = ["FeatureSpaceLocalAttention"]

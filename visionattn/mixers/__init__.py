"""Token mixers for vision transformers: `(B, H, W, C) -> (B, H, W, C)`, any H, W."""

__all__: list[str] = []

"""Where a network looks, and what changes if parts of it are changed."""

from .dope import axial_rope, denoise_rope, low_bands, rope_band_entropy, rope_truncated_rank, unrotate

__all__ = ["axial_rope", "denoise_rope", "low_bands", "rope_band_entropy", "rope_truncated_rank", "unrotate"]

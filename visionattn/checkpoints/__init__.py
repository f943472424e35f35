"""Checkpoints for the world: what there is, where it comes from, and how to add to it.

checkpoints/manifest.json names them all, checkpoints/manifest.schema.json says what its fields mean.
"""

from .catalogue import packaged_path, read_weights
from .publishing import publish

__all__ = ["packaged_path", "publish", "read_weights"]

"""Checkpoints by name or file: what there is, where it comes from, loading, converting and publishing.

checkpoints/manifest.json names them all, checkpoints/manifest.schema.json says what its fields mean.
"""

from .cards import write_cards, write_table
from .catalogue import build, info, list, load, packaged_path, path
from .files import read_weights
from .publishing import publish

__all__ = [
    "build",
    "info",
    "list",
    "load",
    "packaged_path",
    "path",
    "publish",
    "read_weights",
    "write_cards",
    "write_table",
]

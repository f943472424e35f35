"""Checkpoints for the world: what there is, where it comes from, how to convert and how to add to it.

checkpoints/manifest.json names them all, checkpoints/manifest.schema.json says what its fields mean.
"""

from .cards import write_cards, write_table
from .catalogue import info, list, load, packaged_path, path, read_weights
from .publishing import publish

__all__ = ["info", "list", "load", "packaged_path", "path", "publish", "read_weights", "write_cards", "write_table"]

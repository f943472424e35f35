"""Checkpoints by name or file: listing, provenance, loading, converting and publishing.

checkpoints/manifest.json names them all, checkpoints/manifest.schema.json says what its fields mean.
"""

from .cards import write_cards, write_table
from .catalogue import build, info, list, load, packaged_path, path
from .files import read_weights
from .hub import push_to_hub, write_hub_folder
from .pipelines import describe_pipeline
from .publishing import publish

__all__ = [
    "build",
    "describe_pipeline",
    "info",
    "list",
    "load",
    "packaged_path",
    "path",
    "publish",
    "push_to_hub",
    "read_weights",
    "write_cards",
    "write_hub_folder",
    "write_table",
]

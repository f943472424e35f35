"""The checkpoints that the manifest names, and the weights in their files."""

from pathlib import Path

import torch

from visionattn._files import read_checkpoint
from visionattn._resources import checkpoint_dir, read_manifest
from visionattn.models import unwrap

__all__ = ["packaged_path", "read_weights"]


def packaged_path(name: str) -> Path:
    """The file of a packaged checkpoint.

    Args:
        name: `<model>.<tag>`.

    Raises:
        ValueError: If there is none of this name.
    """
    manifest = read_manifest()
    if name not in manifest:
        raise ValueError(f"no packaged checkpoint {name!r}; there are: {', '.join(manifest) or 'none'}")
    return checkpoint_dir() / manifest[name]["file"]


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The flat weights in a published file, a training checkpoint or an author's file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code or holds no weights.
    """
    state_dict = unwrap(read_checkpoint(path))
    strays = [key for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if strays or not state_dict:
        raise ValueError(f"{path} holds no flat weights: {', '.join(strays[:3]) or 'nothing'} is no tensor")
    return state_dict

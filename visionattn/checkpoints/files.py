"""Weight files from and for other software, with their metadata."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from visionattn.models import CONVERTERS
from visionattn.utils.files import DATA_SHA256, read_checkpoint, replacing
from visionattn.utils.published import KEY, VERSION, read_facts
from visionattn.utils.quantization import SCALE
from visionattn.utils.state_dict import check_finite, network_weights, unwrap

from .layout import Layout, StateDict

__all__ = ["published_content", "read_origin", "read_source", "read_weights", "save_as", "write_published"]

_WRAPPERS = ("state_dict", "model")


def read_weights(path: str | Path, allow_nonfinite: bool = False) -> StateDict:
    """The flat state dict in a published file, a training checkpoint or an author's file.

    Args:
        path: The file.
        allow_nonfinite: Whether weights may be infinite or not a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code, holds no weights, or weights that are not finite.
    """
    state_dict = unwrap(read_checkpoint(path), str(path))
    if not allow_nonfinite:
        check_finite(state_dict, str(path))
    return state_dict


def read_source(path: str | Path) -> tuple[StateDict, Layout]:
    """The flat state dict of a network in a file, and its layout.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds code or holds no weights.
    """
    checkpoint = read_checkpoint(path)
    weights = network_weights(checkpoint, str(path))
    check_finite(weights, str(path))
    wrapper = next((key for key in _WRAPPERS if isinstance(checkpoint.get(key), dict)), None)
    entries = checkpoint[wrapper] if wrapper else checkpoint
    # What was taken off all names: `module.`, `_orig_mod.`, and `backbone.` of a classifier as it is trained here.
    names = [name for name in entries if not name.endswith(SCALE)]
    prefixes = {name.removesuffix(key) for name, key in zip(names, weights, strict=True)}
    return weights, Layout.of(weights, wrapper, prefixes.pop() if len(prefixes) == 1 else "")


def read_origin(path: str | Path) -> tuple[str | None, dict[str, Any], Layout | None]:
    """The metadata of a file written by `publish` or `convert`: network, its arguments, and its original layout."""
    facts = read_facts(path) or {}
    layout = Layout.from_json(facts["layout"]) if "layout" in facts else None
    model = facts.get("model")
    return model if model in CONVERTERS else None, facts.get("arguments", {}), layout


def published_content(state_dict: StateDict, facts: dict[str, Any]) -> bytes:
    """The content of a safetensors file with its metadata.

    Args:
        state_dict: The weights, as they shall be stored.
        facts: See `visionattn.utils.published`.
    """
    # Copies, for the format has no tied weights.
    plain = {"memory_format": torch.contiguous_format}
    weights = {key: value.detach().cpu().clone(**plain) for key, value in state_dict.items()}
    bare = safetensors.torch.save(weights)
    data = memoryview(bare)[8 + int.from_bytes(bare[:8], "little") :]
    text = json.dumps({"version": VERSION, **facts}, allow_nan=False)
    return safetensors.torch.save(weights, {"format": "pt", DATA_SHA256: hashlib.sha256(data).hexdigest(), KEY: text})


def write_published(state_dict: StateDict, facts: dict[str, Any], folder: str | Path, stem: str) -> Path:
    """Writes `published_content` as `<stem>-<first digits of its sha256>.safetensors`.

    Args:
        state_dict: The weights, as they shall be stored.
        facts: See `visionattn.utils.published`.
        folder: Where the file goes.
        stem: What its name begins with.
    """
    content = published_content(state_dict, facts)
    digest = hashlib.sha256(content).hexdigest()
    # Decimal digits alone would not be read as a hash.
    length = next(n for n in range(8, len(digest) + 1) if not digest[:n].isdecimal())
    path = Path(folder) / f"{stem}-{digest[:length]}.safetensors"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def save_as(state_dict: StateDict, layout: Layout, path: str | Path) -> None:
    """Writes exported weights as a file of the layout: safetensors if its name ends so, else PyTorch's format.

    Args:
        state_dict: The weights.
        layout: What stands around them.
        path: The file.
    """
    path = Path(path)
    entries = {f"{layout.prefix}{key}": value for key, value in state_dict.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(entries, temporary)
        else:
            torch.save({layout.wrapper: entries} if layout.wrapper else entries, temporary)

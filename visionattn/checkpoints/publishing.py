"""Entering trained networks into a manifest, as flat files of weights named by their sha256."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from visionattn.models import check_state_dict
from visionattn.profiling.cost import count_macs
from visionattn.utils.files import replacing, sha256
from visionattn.utils.quantization import pack

__all__ = ["publish", "write_named"]


def publish(
    model: nn.Module,
    name: str,
    folder: str | Path,
    *,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    input_size: tuple[int, int, int],
    facts: dict[str, Any],
    bits: int = 32,
) -> Path:
    """Writes a trained network as `<model>-<tag>-<sha256>.safetensors` and enters it into the manifest beside it.

    A checkpoint of the same name is replaced.

    Args:
        model: The trained timm network; of other tasks than classification the whole task.
        name: `<model>.<tag>`. timm finds classifiers under it; other tasks are built by `config` of the facts.
        folder: Where the file and `manifest.json` go.
        classes: Names of the classes.
        mean: Of the channels, for pixels in 0..1.
        std: Of the channels, for pixels in 0..1.
        input_size: Channels, height and width the network was trained for.
        facts: What else the manifest shall say: `task`, `dataset`, `metrics`, `config`, `command`, `license`, `origin`;
            checkpoints/manifest.schema.json tells what they mean.
        bits: 32 keeps the weights as they are, 8 rounds matrices and kernels to a quarter of the size.

    Returns:
        The file's path.

    Raises:
        ValueError: If the name is not of this form, its model is not registered or is another network, or `bits` is
            neither.
    """
    if bits not in (8, 32):
        raise ValueError(f"bits must be 8 or 32, got {bits}")
    architecture, dot, tag = name.partition(".")
    if not dot or not tag or not timm.is_model(architecture):
        raise ValueError(f"name must be <registered model>.<tag>, such as va_resnet10n_cbam.digits, got {name!r}")
    if facts["task"] == "classification":
        # Such as one with attached plug-ins, or of another width, which the name alone could not build again.
        check_state_dict(model.state_dict(), timm.create_model(architecture, num_classes=len(classes), device="meta"))
    folder = Path(folder)
    state_dict = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    state_dict = pack(state_dict) if bits == 8 else state_dict
    path = write_named(state_dict, folder, f"{architecture}-{tag}", {"name": name})
    _enter(
        folder / "manifest.json",
        name,
        {
            "model": architecture,
            "tag": tag,
            **{name: facts[name] for name in ("task", "dataset", "metrics")},
            "reported_by": "this package",
            **{name: facts[name] for name in ("config", "command", "license", "origin")},
            "format": "native",
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "macs": count_macs(copy.deepcopy(model).to("meta"), input_size),
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "sources": [{"kind": "packaged"}],
            "input": {
                "num_classes": len(classes),
                "label_names": list(classes),
                "input_size": list(input_size),
                "mean": list(mean),
                "std": list(std),
                "crop_pct": 1.0,
            },
        },
    )
    return path


def write_named(state_dict: dict[str, torch.Tensor], folder: Path, stem: str, facts: dict[str, str]) -> Path:
    """Writes `<stem>-<first digits of its sha256>.safetensors`.

    Args:
        state_dict: The weights.
        folder: Where the file goes.
        stem: What its name begins with.
        facts: What it shall tell of itself.
    """
    content = safetensors.torch.save(state_dict, metadata=facts)
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.safetensors"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def _enter(manifest: Path, name: str, entry: dict[str, Any]) -> None:
    content = json.loads(manifest.read_text()) if manifest.is_file() else {"version": 2, "checkpoints": {}}
    old = content["checkpoints"].get(name)
    content["checkpoints"][name] = entry
    content["checkpoints"] = dict(sorted(content["checkpoints"].items()))
    with replacing(manifest) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    # Last, so that the manifest never names a file that is gone.
    if old and old["file"] != entry["file"]:
        (manifest.parent / old["file"]).unlink(missing_ok=True)

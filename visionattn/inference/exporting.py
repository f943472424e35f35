"""Exports networks of all tasks to ONNX and to PyTorch's exported programs (pt2)."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionattn.utils.files import replacing
from visionattn.version import __version__

from .loading import load_network
from .network import Network
from .parity import ParityError, compare, load_exported
from .pictures import list_pictures

__all__ = ["FORMATS", "Exported", "export_network"]

FORMATS = ("onnx", "pt2")
_LARGEST_ONNX = 2 * 10**9
# The exporter's optimiser takes the square of the nodes: many minutes for networks with more. Runtimes optimise anyway.
_OPTIMISED = 3000
_DIMENSIONS = ("batch", "height", "width")


@dataclass(frozen=True)
class Exported:
    """A network that was exported.

    Args:
        path: The file.
        facts: What it says of itself: `task`, `classes`, `mean`, `std`, `size`, `outputs`, `dynamic`, ...
        parity: How its outputs differ from the network's, for each input that was tried.
        compared: Whether there was anything to compare: a detector may have found no object.
    """

    path: Path
    facts: dict[str, Any]
    parity: tuple[str, ...]
    compared: bool


def export_network(
    model: Any,
    checkpoint: str | Path | None = None,
    *,
    format: str,
    out: str | Path | None = None,
    dynamic: bool = False,
    half: bool = False,
    size: int | tuple[int, int] | None = None,
    image: Any = None,
    classes: Sequence[str] | None = None,
) -> Exported:
    """Exports a trained network, runs the exported file and compares it with the network.

    The file takes normalised RGB pictures, `input` `(B, 3, H, W)`. Classification has `logits` `(B, classes)`,
    segmentation `logits` `(B, classes, H, W)` of the whole picture at once, detection the outputs of
    `visionattn.tasks.exportable.ExportableDetector`. In ONNX what it says of itself is in `metadata_props`, in pt2 in
    the extra file `metadata.json`. pt2 files of detectors need `import torchvision` before they are loaded.

    Args:
        model: As for `load_network`.
        checkpoint: As for `load_network`.
        format: `onnx` or `pt2`.
        out: A new file; without it one named after the network, in the current folder.
        dynamic: Leave the size of the batch open, and height and width where the network can; a detector's anchors
            belong to one size of picture. Otherwise the file takes one picture at a time.
        half: Compute in float16 and take float16 pictures; outputs are float32 all the same.
        size: Height and width, or one number for both; without it those the network was trained for, or what its
            pipeline makes of a square picture.
        image: The picture to compare with, as `Predictor` takes it; without it a photograph with digits on it.
        classes: As for `load_network`.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If a package is missing that the format needs.
        ValueError: If an argument is wrong, the file exists, the network can't be exported, or the file computes
            something else (`ParityError`).
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "onnx":
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    path = Path(out) if out is not None else Path(f"{_stem(model, checkpoint)}.{format}")
    if path.exists():
        raise ValueError(f"{path} exists already: name a new file (--out)")
    if half and isinstance(model, nn.Module):
        model = deepcopy(model)
    network = load_network(model, checkpoint, classes=classes)
    example = _example(network, image, size)
    sizes = (int(example.shape[-2]), int(example.shape[-1]))
    plain, names = _exportable(network, sizes)
    with torch.inference_mode():
        answers = [(x, _outputs(plain, x)) for x in _inputs(example, dynamic)]
        if dynamic and network.task != "detection":
            answers += _another_size(plain, example)
    dtype = torch.float16 if half else torch.float32
    if half:
        network.module.half()
    module, _ = _exportable(network, sizes)
    weights = sum(value.nbytes for value in module.state_dict().values())
    if format == "onnx" and weights > _LARGEST_ONNX:
        raise ValueError(f"{weights / 1e9:.1f} GB of weights are more than an ONNX file holds: use --half or pt2")
    facts: dict[str, Any] = {
        "task": network.task,
        "name": _stem(model, checkpoint),
        "classes": list(network.classes),
        "mean": list(network.mean),
        "std": list(network.std),
        "size": list(sizes),
        "outputs": list(names),
        "dtype": str(dtype).removeprefix("torch."),
        "made_by": f"visionattn {__version__}",
    }
    tries = [3, 1] if dynamic and len(answers) == 3 else [1] if dynamic else [0]
    for number, count in enumerate(tries):
        facts["dynamic"] = list(_DIMENSIONS[:count])
        fitting = [pair for pair in answers if count == 3 or pair[0].shape[-2:] == example.shape[-2:]]
        try:
            parity, compared = _write(module, fitting, names, facts, dtype, path, format)
        except (ParityError, _CannotExportError) as error:
            if number + 1 == len(tries):
                raise ValueError(f"{facts['name']}: {error}") from error
            continue
        break
    return Exported(path, facts, parity, compared)


class _CannotExportError(ValueError):
    """A network, or its dynamic dimensions, that cannot be exported."""


class _Logits(nn.Module):
    """A classifier or segmentor, `(B, 3, H, W)` to float32 logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).float()


def _exportable(network: Network, size: tuple[int, int]) -> tuple[nn.Module, tuple[str, ...]]:
    if network.task != "detection":
        return _Logits(network.module).eval(), ("logits",)
    from visionattn.tasks.exportable import ExportableDetector

    detector = ExportableDetector(network.module, size).eval()
    return detector, detector.names


def _outputs(module: Any, x: torch.Tensor) -> Sequence[torch.Tensor]:
    """The outputs of the network itself, in eager mode and float32."""
    return module.reference(x) if hasattr(module, "reference") else (module(x),)


def _stem(model: Any, checkpoint: str | Path | None) -> str:
    """The default name of the file."""
    if isinstance(model, nn.Module):
        return type(model).__name__.lower()
    if not isinstance(model, (str, Path)):  # a config
        return Path(getattr(model, "filename", None) or "network").stem
    name = Path(model).stem if Path(model).is_file() else str(model).rpartition("/")[2].rpartition(":")[2]
    return name.removesuffix(".py")


def _example(network: Network, image: Any, size: int | tuple[int, int] | None) -> torch.Tensor:
    """A real image, preprocessed for the network, `(1, 3, H, W)`."""
    wanted = network.input_size if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if size is not None and (wanted is None or len(wanted) != 2 or min(wanted) < 1):
        raise ValueError(f"size must be a number or (height, width), at least 1, got {size}")
    if image is None:
        picture, name = _scene(max(wanted or (256,))), "a photograph with digits"
    else:
        first = next(iter(list_pictures(image)))
        picture, name = first.read(), first.name
    x = network.normalise(network.prepare(picture, name)).float()
    if wanted is not None and tuple(x.shape[-2:]) != tuple(wanted):
        x = nn.functional.interpolate(x, wanted, mode="bilinear", antialias=True)
    return x.contiguous()


def _scene(side: int) -> Any:
    from visionattn.data import SyntheticDigits

    data = SyntheticDigits(split="test", task="detection", size=max(side, 64), pipeline=[], length=1)
    return data[0]["inputs"].permute(1, 2, 0).contiguous().numpy()


def _inputs(x: torch.Tensor, dynamic: bool) -> list[torch.Tensor]:
    """The inputs that the file is tested with: the image and, for dynamic batches, several at once."""
    return [x, torch.cat([x, x.flip(-1), x.flip(-2)])] if dynamic else [x]


def _another_size(network: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, Sequence[torch.Tensor]]]:
    """Images of another size and the network's outputs, if it accepts them."""
    height, width = x.shape[-2:]
    larger = nn.functional.interpolate(torch.cat([x, x.flip(-1)]), (height + 64, width + 32), mode="bilinear")
    try:
        return [(larger, _outputs(network, larger))]
    except (AssertionError, RuntimeError, ValueError):
        return []


def _write(
    module: nn.Module,
    answers: Sequence[tuple[torch.Tensor, Sequence[torch.Tensor]]],
    names: Sequence[str],
    facts: dict[str, Any],
    dtype: torch.dtype,
    path: Path,
    format: str,
) -> tuple[tuple[str, ...], bool]:
    """Writes a file under a temporary name and renames it only if its outputs agree."""
    x = answers[0][0].to(dtype)
    count = len(facts["dynamic"])
    program = _trace(module, torch.cat([x, x]) if count else x, count)
    lines, compared = [], False
    with replacing(path) as temporary:
        if format == "pt2":
            with _quiet():
                torch.export.save(program, temporary, extra_files={"metadata.json": json.dumps(facts)})
        else:
            _save_onnx(program, names, facts, temporary)
        runner, run = load_exported(temporary, format)
        for inputs, expected in answers:
            shape = "x".join(map(str, inputs.shape))
            try:
                found = run(inputs.to(dtype))
            except Exception as error:  # any of the runtime's
                raise _CannotExportError(f"{runner} cannot run it on {shape}: {_first_line(error)}") from error
            result = compare(found, expected, names, dtype, max(inputs.shape[-2:]))
            lines.append(f"{runner} against eager on {shape}: {result.text}")
            compared |= result.told
            if not result.agrees:
                raise ParityError(f"the exported file computes something else, and is not kept: {lines[-1]}")
    return tuple(lines), compared


def _trace(module: nn.Module, x: torch.Tensor, count: int) -> Any:
    """The network as a graph with the first `count` dimensions of batch, height and width dynamic."""
    dims = {(0, 2, 3)[number]: torch.export.Dim.AUTO for number in range(count)}
    with _quiet():
        try:
            program = torch.export.export(module, (x,), dynamic_shapes=(dims,) if dims else None, strict=False)
        except Exception as error:  # the exporter raises of every kind
            raise _CannotExportError(f"torch.export cannot follow it: {_first_line(error)}") from error
    name = program.graph_signature.user_inputs[0]
    (node,) = (node for node in program.graph.nodes if node.name == name)
    if fixed := [_DIMENSIONS[(0, 2, 3).index(dim)] for dim in dims if isinstance(node.meta["val"].shape[dim], int)]:
        raise _CannotExportError(f"torch.export cannot leave {', '.join(fixed)} open")
    return program


def _save_onnx(program: Any, names: Sequence[str], facts: dict[str, Any], path: Path) -> None:
    optimise = len(program.graph.nodes) < _OPTIMISED
    with _quiet():
        try:
            exported: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                optimize=optimise,
                input_names=["input"],
                output_names=list(names),
            )
        except Exception as error:  # the exporter raises of every kind
            raise _CannotExportError(
                f"there is no ONNX form of it: {_first_line(error)}; --format pt2 may do"
            ) from error
    for key, value in facts.items():
        exported.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    exported.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporters' internal messages."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

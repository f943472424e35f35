"""Compares the outputs of an exported file with the network's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Comparison", "ParityError", "compare", "load_exported"]

# Largest difference, as a share of the largest output, of the picture's longer side and of a score of 1.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2}
# Rounding may carry an object over a threshold.
_LOST = {torch.float32: 0.0, torch.float16: 0.1}

Outputs = Sequence[torch.Tensor]


class ParityError(ValueError):
    """An exported file does not compute the network's outputs."""


@dataclass(frozen=True)
class Comparison:
    """The difference between the outputs of an exported file and of the network.

    Args:
        text: That in words.
        agrees: Whether the difference is within the tolerance.
        told: Whether there was anything to compare.
    """

    text: str
    agrees: bool
    told: bool = True


def load_exported(path: Path, format: str) -> tuple[str, Callable[[torch.Tensor], Outputs]]:
    """The runtime of an exported file, and a function from its input to its outputs."""
    if format == "pt2":
        program: Any = torch.export.load(path).module()

        def run(x: torch.Tensor) -> Outputs:
            with torch.inference_mode():
                outputs = program(x)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return f"the loaded program (torch {torch.__version__.partition('+')[0]})", run
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run_session(x: torch.Tensor) -> Outputs:
        return [torch.from_numpy(output) for output in session.run(None, {name: x.numpy()})]

    return f"onnxruntime {onnxruntime.__version__}", run_session


def compare(found: Outputs, expected: Outputs, names: Sequence[str], dtype: torch.dtype, side: int) -> Comparison:
    """Compares outputs by name: detections object by object, others element by element.

    Args:
        found: Outputs of the exported file.
        expected: Outputs of the network, in float32.
        names: Their names.
        dtype: What the exported network computes in.
        side: The picture's longer side in pixels.
    """
    tolerance = TOLERANCES[dtype]
    if tuple(x.shape for x in found) != tuple(x.shape for x in expected):
        shapes = " and ".join(str([tuple(x.shape) for x in outputs]) for outputs in (found, expected))
        return Comparison(f"shapes differ: {shapes}", False)
    if "boxes" in names:
        ours, theirs = (dict(zip(names, values, strict=True)) for values in (found, expected))
        return _compare_objects(ours, theirs, lost=_LOST[dtype], tolerance=tolerance, side=side)
    largest = max((a.double() - b.double()).abs().max().item() for a, b in zip(found, expected, strict=True))
    scale = max(b.double().abs().max().item() for b in expected)
    text = f"largest difference {largest:.1e}, {largest / max(scale, 1e-30):.1e} of the largest output"
    # Written so that a difference which is not a number fails.
    return Comparison(f"{text} (tolerance {tolerance:.0e})", largest <= tolerance * scale)


def _compare_objects(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], lost: float, tolerance: float, side: int
) -> Comparison:
    """Compares each object with the nearest one of its class: equal scores have no order."""
    total = matched = 0
    extra = int(found["valid"].sum())
    worst = dict.fromkeys(("boxes", "scores", "masks"), 0.0)
    for row in range(len(expected["valid"])):
        left = found["valid"][row].clone()
        for number in expected["valid"][row].nonzero()[:, 0].tolist():
            total += 1
            same = left & (found["labels"][row] == expected["labels"][row, number])
            apart = (found["boxes"][row] - expected["boxes"][row, number]).abs().amax(-1)
            scores = (found["scores"][row] - expected["scores"][row, number]).abs()
            far = torch.where(same, (apart / side).maximum(scores), torch.inf)
            nearest = int(far.argmin())
            if not far[nearest] <= tolerance:
                continue
            left[nearest] = False
            matched += 1
            extra -= 1
            for name, value in (("boxes", apart), ("scores", scores)):
                worst[name] = max(worst[name], value[nearest].item())
            if "masks" in found:
                masks = (found["masks"][row, nearest] - expected["masks"][row, number]).abs().max().item()
                worst["masks"] = max(worst["masks"], masks)
    if total == 0:
        return Comparison("no objects in this picture: nothing to compare, name another by --image", extra == 0, False)
    differences = f"boxes differ by at most {worst['boxes']:.1e} pixels, scores by {worst['scores']:.1e}"
    differences += f", masks by {worst['masks']:.1e}" if "masks" in found else ""
    agrees = max(total - matched, extra) <= lost * total and worst["masks"] <= tolerance
    more = f" and {extra} more" if extra else ""
    return Comparison(f"{matched} of {total} objects{more}, {differences} (tolerance {tolerance:.0e})", agrees)

"""Verifies conversions against recorded outputs of the official networks, where the fixtures exist: in a checkout."""

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import torch

from visionattn.models import CONVERTERS, check_state_dict
from visionattn.testing.fixtures import load

from .conversion import Conversion

__all__ = ["verify"]

_logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest logit, in double precision; the outputs were recorded in single


def verify(conversion: Conversion, folder: str | Path) -> tuple[str, float] | None:
    """Converts weights whose outputs a fixture records, and compares the outputs.

    The fixture must be of the very same entries; the weights are its own, so any file of the format is verified by it.

    Args:
        conversion: What to verify.
        folder: Of the fixtures, `tests/golden`.

    Returns:
        The fixture's name and the largest difference over the largest logit; none if there is no fixture.

    Raises:
        ValueError: If the outputs differ.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    name = _matching(conversion.traced.layout.shapes, folder)
    if name is None:
        return None
    golden = load(name, folder)
    network = conversion.build()
    weights = CONVERTERS[conversion.model](golden.state_dict, network)
    check_state_dict(weights, network)
    network.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        logits = network.double().eval()(golden.input.double())
    expected = golden.arrays["out_0"].double()
    if logits.shape != expected.shape:
        return None  # it has recorded something else than logits
    error = ((logits - expected).abs().max() / expected.abs().max()).item()
    if error > TOLERANCE:
        raise ValueError(f"converted weights give other outputs than the official network's in {name}, by {error:.1e}")
    return name, error


def _matching(shapes: dict[str, tuple[int, ...]], folder: Path) -> str | None:
    """The fixture of a network with these entries; entries that the network builds itself may be missing."""
    for path in sorted(folder.glob("*_eval.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
            kept = set(meta["kept"])
            recorded = {key: tuple(shape) for key, shape, _ in meta["keys"]}
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            _logger.warning("%s is no fixture and is ignored: %s", path, error)
            continue
        if {k: s for k, s in recorded.items() if k not in kept} == {k: s for k, s in shapes.items() if k not in kept}:
            return path.stem
    return None

"""Where the attention of a trained network looks, and whether that is where the evidence is."""

import numpy as np
import torch
from torch import nn

from visionattn.data.synthetic.diagnostics import Scenes
from visionattn.explain import capture, gates, min_max, pointing_game, raw, upsample

from .training import to_inputs

__all__ = ["LOOKED", "look", "pointing"]

# Scenes that pointing scores rest on.
LOOKED = 200


def look(model: nn.Module, scenes: Scenes, count: int) -> torch.Tensor | None:
    """Where attention looks in the first scenes, `(count, H, W)` in 0..1; none where nothing says so.

    Of plug-ins the last spatial factor, the mean over its channels; of mixers what all positions look at in the last
    attention between places, the mean over its heads. A map that is the same everywhere is 0.
    """
    x = to_inputs(scenes.images[:count], next(model.parameters()).device)
    try:
        factors = [factor for block in gates(model, x).values() for factor in block.values()]
        maps = [factor.float().mean(1) for factor in factors if min(factor.shape[2:]) > 1]
        found = maps[-1] if maps else None
    except ValueError:  # no gates: a mixer, or nothing
        found = _attention(model, x)
    if found is None:
        return None
    # Rounding would look like a map when its smallest value is made 0 and its largest 1.
    flat = found.amax((1, 2)) - found.amin((1, 2)) <= 1e-4 * found.abs().amax((1, 2))
    found = found.masked_fill(flat[:, None, None], 0)
    return min_max(upsample(found, scenes.images.shape[1:3])).cpu()


def _attention(model: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    try:
        with torch.no_grad(), capture(model) as record:
            model.eval()(x)
        return raw(record)
    except ValueError:
        return None


def pointing(maps: torch.Tensor | None, scenes: Scenes) -> tuple[float, float]:
    """Share of scenes whose map is largest on the evidence, NaN without maps, and the share of the evidence's area."""
    evidence = torch.from_numpy(scenes.evidence[:LOOKED])
    score = float("nan") if maps is None else float(pointing_game(maps, evidence).mean())
    return score, float(np.mean(scenes.evidence[:LOOKED]))

"""What the rows of the diagnostics cost beside the first of their host."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from visionattn.benchmark.timing import cpu_clock, one_thread, quantiles, take_turns
from visionattn.profiling.cost import count_macs
from visionattn.profiling.operator_counter import saved_bytes

from .recipe import Recipe
from .rows import Row

__all__ = ["RowCost", "measure"]

_BATCH = 16
_ROUNDS = 5


@dataclass(frozen=True)
class RowCost:
    """Costs of one row.

    Args:
        params: Trained values.
        macs: Multiplications with additions of one scene.
        kept: Bytes that a training step keeps for its backward pass, of one scene.
        training: Time of a forward and backward pass over that of the first row of the host.
        inference: Time of a forward pass over that.
        growth: Exponent of inference time in the number of positions, between scenes of one and of two sides.
    """

    params: int
    macs: int
    kept: int
    training: float
    inference: float
    growth: float


def measure(rows: Sequence[Row], recipe: Recipe, seconds: float = 0.05) -> dict[str, RowCost]:
    """Counts and times rows of one host in turns on one thread.

    Args:
        rows: Of one host, what the others are compared with first.
        recipe: The settings.
        seconds: CPU time of each row and each of three timings, on average, at least.
    """
    models = [row.build(recipe, 10).to(memory_format=torch.channels_last) for row in rows]
    small = torch.randn(_BATCH, 3, recipe.size, recipe.size)
    large = torch.randn(_BATCH // 4, 3, 2 * recipe.size, 2 * recipe.size)
    train = _median([partial(_step, model, small) for model in models], seconds)
    test = _median([partial(_infer, model, small) for model in models], seconds)
    grown = _median([partial(_infer, model, large) for model in models], seconds)
    found = {}
    for at, (row, model) in enumerate(zip(rows, models, strict=True)):
        # The same number of positions in both: what is left is growth beyond linear, of four times the positions.
        beyond = torch.tensor(grown[at] / test[at]).log() / torch.tensor(4.0).log()
        found[row.name] = RowCost(
            params=sum(parameter.numel() for parameter in model.parameters()),
            macs=count_macs(copy.deepcopy(model).to("meta"), small.shape[1:], batch=2),
            kept=saved_bytes(model.train(), small) // _BATCH,
            training=train[at] / train[0],
            inference=test[at] / test[0],
            growth=1 + float(beyond),
        )
    return found


def _median(steps: Sequence[partial], seconds: float) -> list[float]:
    with one_thread():
        rounds = take_turns(steps, cpu_clock, seconds=seconds, min_rounds=_ROUNDS)
    return [quantiles([times[at] for times in rounds])["p50"] for at in range(len(steps))]


def _infer(model: nn.Module, x: torch.Tensor, call: int) -> None:
    with torch.inference_mode():
        model.eval()(x)


def _step(model: nn.Module, x: torch.Tensor, call: int) -> None:
    model.train()(x).square().mean().backward()

"""The results of a comparison for each network: accuracy, difference from the baseline, and costs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from visionattn.benchmark.timing import cpu_clock, one_thread, quantiles, take_turns
from visionattn.engine import Runner
from visionattn.profiling.cost import count_macs
from visionattn.profiling.operator_counter import saved_bytes

from .runs import Run, classifier
from .significance import Difference
from .significance import compare as compare_accuracy

__all__ = ["Ratio", "Result", "collect"]

_MIN_ROUNDS = 11


@dataclass(frozen=True)
class Ratio:
    """A network's time over its baseline's.

    Args:
        median: Over the rounds.
        low: A tenth of the rounds lie below.
        high: A tenth of the rounds lie above.
        noise: The same low and high for the baseline over itself.
    """

    median: float
    low: float
    high: float
    noise: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """One row of the report.

    Args:
        config: Name of the config.
        network: Name of the network.
        params: Number of trained values.
        macs: Multiplications with additions of one picture.
        kept: Bytes that a forward pass in train mode keeps for the backward pass, for one picture.
        accuracies: Of each seed after the last epoch, in shares.
        losses: Training steps and losses of each seed.
        baseline: The row it is compared with; none for a baseline itself.
        difference: From the baseline's accuracy.
        times: `fwd` is inference, a forward pass; `f+b` training, a forward and a backward pass.
    """

    config: str
    network: str
    params: int
    macs: int
    kept: int
    accuracies: tuple[float, ...]
    losses: tuple[list[tuple[int, float]], ...]
    baseline: "Result | None" = None
    difference: Difference | None = None
    times: dict[str, Ratio] = field(default_factory=dict)


def collect(groups: Sequence[Sequence[Sequence[Run]]], seconds: float) -> list[Result]:
    """Evaluates, counts and times all networks.

    Args:
        groups: Finished runs: for each group, for each network (the baseline first), one of each seed.
        seconds: CPU time of each network, on average, in each of the two timings.

    Returns:
        The rows of all groups in turn.
    """
    results = []
    for group in groups:
        correct = [np.stack([run.correct() for run in runs]) for runs in group]
        times = _time([runs[0] for runs in group], seconds)
        baseline = None
        for runs, hits, ratios in zip(group, correct, times, strict=True):
            accuracies = tuple(float(share) for share in hits.mean(1))
            facts: dict[str, Any] = {"accuracies": accuracies, "losses": tuple(run.losses() for run in runs)}
            facts |= _count(runs[0])
            if baseline is not None:
                facts["baseline"] = baseline
                facts["difference"] = compare_accuracy(hits, correct[0])
                facts["times"] = ratios
            results.append(Result(config=runs[0].label, network=runs[0].network, **facts))
            baseline = baseline or results[-1]
            print(f"measured {results[-1].config}", flush=True)
    return results


def _inputs(run: Run) -> torch.Size:
    """Shape of its training batches, with the pictures of the test set."""
    config = run.config
    picture = Runner.build_dataloader(config.test_dataloader).dataset[0]["inputs"]
    return torch.Size((config.train_dataloader.batch_size, *picture.shape))


def _count(run: Run) -> dict[str, int]:
    shape = _inputs(run)
    model = classifier(run.config)
    x = torch.randn(shape).to(memory_format=model.memory_format)
    return {
        "params": sum(parameter.numel() for parameter in model.backbone.parameters()),
        "macs": count_macs(copy.deepcopy(model.backbone).to("meta"), shape[1:]),
        "kept": saved_bytes(model.backbone.train(), x) // shape[0],
    }


def _time(runs: Sequence[Run], seconds: float) -> list[dict[str, Ratio]]:
    """Times of networks over the first one's, which runs twice in every round: that is the noise."""
    models = [classifier(run.config) for run in (*runs, runs[0])]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_inputs(runs[0]), generator=generator).to(memory_format=models[0].memory_format)
    weight = torch.randn((len(x), models[0].num_classes), generator=generator)
    times: list[dict[str, Ratio]] = [{} for _ in runs]
    for mode, step in _STEPS.items():
        steps = [partial(step, model.backbone.train(mode == "f+b"), x, weight) for model in models]
        with one_thread():
            rounds = take_turns(steps, cpu_clock, seconds=seconds, min_rounds=_MIN_ROUNDS)
        noise = quantiles([own[-1] / own[0] for own in rounds])
        for at, ratios in enumerate(times):
            share = quantiles([own[at] / own[0] for own in rounds])
            ratios[mode] = Ratio(share["p50"], share["p10"], share["p90"], (noise["p10"], noise["p90"]))
    return times


def _forward(network: nn.Module, x: torch.Tensor, weight: torch.Tensor, call: int) -> None:
    with torch.inference_mode():
        network(x)


def _forward_backward(network: nn.Module, x: torch.Tensor, weight: torch.Tensor, call: int) -> None:
    torch.autograd.grad(network(x), tuple(network.parameters()), weight)


_STEPS = {"fwd": _forward, "f+b": _forward_backward}

"""What a bake-off knows of each network: accuracy, its difference from the baseline, and costs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from visionattn.benchmark import LAYOUTS, MODES, Case, CompileBudget, measure, one_thread
from visionattn.cost import count_macs
from visionattn.engine import Runner
from visionattn.traffic import saved_bytes

from .runs import Run, classifier
from .significance import Difference, compare

__all__ = ["Ratio", "Result", "collect"]


@dataclass(frozen=True)
class Ratio:
    """A network's time over its baseline's.

    Args:
        median: Over the rounds.
        low: A tenth of the rounds lie below.
        high: A tenth of the rounds lie above.
        noise: The same low and high for the network over itself.
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
        times: By mode of `visionattn.benchmark`: `fwd` is inference, `f+b` training.
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
    times: dict[str, Ratio] | None = None


def collect(groups: Sequence[Sequence[Sequence[Run]]], seconds: float) -> list[Result]:
    """Evaluates, counts and times all networks.

    Args:
        groups: Finished runs: for each group, for each network (the baseline first), one of each seed.
        seconds: CPU time of each contender, on average, in each timing.

    Returns:
        The rows of all groups in turn.
    """
    results = []
    for group in groups:
        correct = [np.stack([run.correct() for run in runs]) for runs in group]
        baseline = None
        for runs, hits in zip(group, correct, strict=True):
            accuracies = tuple(float(share) for share in hits.mean(1))
            facts = {"accuracies": accuracies, "losses": tuple(run.losses() for run in runs), **_count(runs[0])}
            if baseline is not None:
                facts["baseline"] = baseline
                facts["difference"] = compare(hits, correct[0])
                facts["times"] = _time(runs[0], group[0][0], seconds)
            results.append(Result(config=Path(runs[0].name).stem, network=runs[0].network, **facts))
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


def _time(run: Run, baseline: Run, seconds: float) -> dict[str, Ratio]:
    layouts = {memory_format: name for name, memory_format in LAYOUTS.items()}
    case = Case(
        "bakeoff",
        run.network,
        tuple(_inputs(run)),
        lambda: classifier(run.config).backbone,
        rivals={"baseline": lambda _: classifier(baseline.config).backbone},
        layout=layouts.get(classifier(baseline.config).memory_format, "NCHW"),
        unequal=frozenset({"baseline"}),
    )
    times = {}
    with one_thread():
        for mode in MODES:
            row = measure(case, mode, device="cpu", seconds=seconds, ceilings={}, budget=CompileBudget(0))
            # The baseline's time over ours: how many times as fast.
            speed, noise = row["contenders"]["baseline"]["ratio"], row["noise"]
            times[mode] = Ratio(
                1 / speed["p50"], 1 / speed["p90"], 1 / speed["p10"], noise=(noise["p10"], noise["p90"])
            )
    return times

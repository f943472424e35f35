"""Interleaved timing, on any device.

Contenders run in turns, and who begins changes with every round: whatever else the machine does meets all of them
alike, and each round gives one ratio. Such ratios can be trusted on a machine that others use too.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count

import torch

__all__ = ["Clock", "clock_of", "cpu_clock", "cuda_clock", "measure_ceilings", "one_thread", "quantiles", "streaming"]
__all__ += ["take_turns"]

# Gives the seconds that a call takes on the device.
Clock = Callable[[Callable[[], object]], float]
# Rounds that are made at least.
MIN_ROUNDS = 7
# What a measurement on a GPU lasts at least, in seconds: much longer than it takes to start one.
BURST = 0.002
# Copies 240 MB again and again, as long as there is somebody to disturb.
_STREAM = """
import os, numpy
parent, a, b = os.getppid(), numpy.zeros(30_000_000), numpy.ones(30_000_000)
while os.getppid() == parent:
    numpy.copyto(a, b)
"""


def cpu_clock(run: Callable[[], object]) -> float:
    """CPU time of this thread, without the time that other processes hold the core."""
    started = time.thread_time()
    run()
    return time.thread_time() - started


def cuda_clock(run: Callable[[], object]) -> float:
    """Time between two events in the GPU's queue, including launch latency."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def clock_of(device: str) -> Clock:
    """The clock of a device, `cpu` or `cuda`."""
    return {"cpu": cpu_clock, "cuda": cuda_clock}[device]


def take_turns(
    steps: Sequence[Callable[[int], object]], clock: Clock, *, seconds: float, min_rounds: int, burst: float = 0.0
) -> list[list[float]]:
    """Times steps interleaved: the seconds of one call of each, round by round.

    Args:
        steps: What to time; each gets the number of its call, to choose among inputs.
        clock: The stopwatch.
        seconds: To measure in all rounds, for each step on average.
        min_rounds: Rounds that are made at least.
        burst: Seconds that one measurement lasts at least, by as many calls as that takes.
    """
    numbers = [count() for _ in steps]

    def measure(at: int, calls: int) -> float:
        return clock(lambda: [steps[at](next(numbers[at])) for _ in range(calls)])

    calls = [1] * len(steps)
    if burst:
        for at in range(len(steps)):
            measure(at, 1)
            calls[at] = min(1000, int(burst / max(measure(at, 1), 1e-6)) + 1)
    rounds: list[list[float]] = []
    spent = 0.0
    while len(rounds) < min_rounds or spent < seconds * len(steps):
        times = [0.0] * len(steps)
        for turn in range(len(steps)):
            at = (turn + len(rounds)) % len(steps)
            took = measure(at, calls[at])
            times[at], spent = took / calls[at], spent + took
        rounds.append(times)
    return rounds


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The values below which 10, 50 and 90 % lie, to five digits."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {f"p{10 * n}": float(f"{deciles[n - 1]:.5g}") for n in (1, 5, 9)}


def measure_ceilings(device: str, dtypes: Sequence[torch.dtype]) -> dict[str, float]:
    """What the machine can do at present: bytes per second of a copy and of `x * s`, operations per second of products.

    Args:
        device: `cpu` or `cuda`.
        dtypes: Of the products.
    """
    clock, numbers, side = clock_of(device), *{"cpu": (2**24, 1024), "cuda": (2**28, 8192)}[device]
    x, y = (torch.ones(numbers, device=device) for _ in range(2))
    runs: dict[str, tuple[float, Callable[[int], object]]] = {
        "copy": (2 * 4 * numbers, lambda _: y.copy_(x)),
        "scale": (2 * 4 * numbers, lambda _: torch.mul(x, 1.5, out=y)),
    }
    for dtype in dtypes:
        square = torch.ones(side, side, device=device, dtype=dtype)
        runs[f"product {str(dtype).removeprefix('torch.')}"] = (2 * side**3, partial(_square, square))
    with torch.inference_mode():
        rounds = take_turns([run for _, run in runs.values()], clock, seconds=0.05, min_rounds=5)
    best = [statistics.median(times) for times in zip(*rounds, strict=True)]
    return {name: float(f"{amount / t:.4g}") for (name, (amount, _)), t in zip(runs.items(), best, strict=True)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits PyTorch to one thread inside a `with` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def streaming() -> Iterator[None]:
    """Has another process copy more than caches hold inside a `with` block, as on a machine that others use."""
    process = subprocess.Popen([sys.executable, "-c", _STREAM])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _square(matrix: torch.Tensor, _: int) -> torch.Tensor:
    return matrix @ matrix

"""One row: builds the implementations of a case, checks that their results agree, then times and counts them."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn.profiling.operator_counter import count_pass, count_traffic, saved_bytes

from .cases import LAYOUTS, Case
from .contenders import PlainOps
from .timing import BURST, MIN_ROUNDS, clock_of, quantiles, take_turns

__all__ = ["TOLERANCE", "CompileBudget", "Unequal", "measure"]

# Root of the mean square of the difference, over that of the reference: of outputs, and of gradients. Single values may
# differ by more: where two values nearly tie, rounding decides which is the maximum.
# That of float32 is the case's.
TOLERANCE = {torch.float64: 1e-8, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# Smaller maps stay in caches, where a copy through memory says nothing.
_SMALLEST_MAP = 4 * 2**20


class Unequal(ValueError):
    """Implementations that should agree do not."""


@dataclass
class CompileBudget:
    """Seconds that compilation may take in a whole run; later rows are not compiled."""

    left: float


@dataclass
class _Contender:
    name: str
    module: nn.Module
    checked: bool = True
    compiled: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def measure(
    case: Case, mode: str, *, device: str, seconds: float, ceilings: dict[str, float], budget: CompileBudget
) -> dict[str, Any]:
    """One row of a record: equality first, then times, memory and operators of each contender.

    Args:
        case: What to compare.
        mode: `fwd` or `f+b`.
        device: `cpu` or `cuda`.
        seconds: Of each contender, on average.
        ceilings: What the machine can do, see `measure_ceilings`.
        budget: For compilers; what this row takes is subtracted.

    Raises:
        Unequal: If contenders disagree: then nothing is timed.
    """
    torch.manual_seed(0)
    contenders, notes = _contenders(case, mode, device, budget)
    step = {"fwd": _forward, "f+b": _forward_backward}[mode]
    row: dict[str, Any] = {"reference": next(iter(case.baselines)), "notes": notes}

    exact = torch.float64 if case.dtype == torch.float64 else torch.float32
    sample = _inputs(case, contenders[0].module, device, exact, 1, case.check_batch)[0]
    _check(case, mode, [c for c in contenders if not c.compiled], step, sample)
    for contender in contenders:
        contender.module.to(case.dtype)
    inputs = _inputs(case, contenders[0].module, device, case.dtype, _count_inputs(case, device))
    if case.compiled:
        torch.compiler.reset()
    for contender in [c for c in contenders if c.compiled]:
        if note := _compile(case, mode, contenders, contender, step, inputs[0], budget):
            notes[contender.name] = note
            contenders.remove(contender)
    if case.dtype != exact and not case.exact_only:
        _check(case, mode, contenders, step, inputs[0])

    for contender in contenders:
        contender.facts |= _count(contender, step, inputs[0], mode, device)
    # Ours runs twice: how far its times lie apart is the noise that a ratio has to exceed.
    runs = [c.module for c in (*contenders, contenders[0])]
    rounds = take_turns(
        [partial(_run_step, step, module, inputs) for module in runs],
        clock_of(device),
        seconds=seconds,
        min_rounds=MIN_ROUNDS,
        burst=BURST if device == "cuda" else 0.0,
    )
    for at, contender in enumerate(contenders):
        contender.facts["seconds"] = quantiles([times[at] for times in rounds])
        contender.facts["ratio"] = quantiles([times[at] / times[0] for times in rounds])
    row |= {"rounds": len(rounds), "noise": quantiles([times[-1] / times[0] for times in rounds])}
    row |= _floor(case, mode, contenders, ceilings)
    return row | {"contenders": {c.name: c.facts for c in contenders}}


def _run_step(step: Callable[..., Any], module: nn.Module, inputs: Sequence[tuple[Any, ...]], number: int) -> None:
    step(module, *inputs[number % len(inputs)])


def _contenders(case: Case, mode: str, device: str, budget: CompileBudget) -> tuple[list[_Contender], dict[str, str]]:
    ours, notes = case.build(), dict(case.notes)
    contenders = [_Contender("ours", ours)]
    if device == "cuda":
        contenders.append(_Contender("torch", PlainOps(ours)))
    for name, baseline in case.baselines.items():
        contenders.append(_Contender(name, baseline(ours), name not in case.unequal))
    for name in case.compiled:
        label = "compiled" if name == "ours" else f"{name} compiled"
        if budget.left > 0:
            module = next(c.module for c in contenders if c.name == name)
            compiled: Any = torch.compile(deepcopy(module), dynamic=False)
            contenders.append(_Contender(label, compiled, compiled=True))
        else:
            notes[label] = "the time for compilers was spent"
    for contender in contenders:
        contender.module.to(device).train(mode == "f+b")
        if case.layout:
            contender.module.to(memory_format=LAYOUTS[case.layout])
    return contenders, notes


def _inputs(
    case: Case, ours: nn.Module, device: str, dtype: torch.dtype, count: int, batch: int | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs, each with a gradient for the output."""
    generator = torch.Generator(device).manual_seed(1)
    shape = (min(batch or case.shape[0], case.shape[0]), *case.shape[1:])

    def random(shape: Sequence[int]) -> torch.Tensor:
        tensor = torch.randn(*shape, generator=generator, device=device, dtype=dtype)
        return tensor.to(memory_format=LAYOUTS[case.layout]) if case.layout and tensor.ndim == 4 else tensor

    inputs = [random(shape) for _ in range(count)]
    with torch.inference_mode():
        result = ours(inputs[0]).shape
    return [(x, random(result)) for x in inputs]


def _count_inputs(case: Case, device: str) -> int:
    """On a GPU, enough inputs that none is still in the cache when it is used again, within reason."""
    if device == "cpu":
        return 1
    size = case.dtype.itemsize * torch.Size(case.shape).numel()
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(3, min(16, 2 * cache // size + 1))


def _check(
    case: Case,
    mode: str,
    contenders: Sequence[_Contender],
    step: Callable[..., tuple[torch.Tensor, ...]],
    sample: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Compares outputs, input gradients and the gradients of parameters that have the same names with the reference."""
    reference = next(c for c in contenders if c.name in case.baselines)
    checked = [c for c in contenders if c.checked]
    if not reference.checked:
        return
    tolerance = TOLERANCE.get(sample[0].dtype, case.tolerance)
    expected = step(reference.module, *sample)
    for contender in checked:
        started = time.perf_counter()
        results = step(contender.module, *sample)
        if sample[0].is_cuda:
            torch.cuda.synchronize()
        first_call = round(time.perf_counter() - started, 4)
        contender.facts["first_call"] = max(first_call, contender.facts.get("first_call", 0.0))
        if contender is reference:
            continue
        pairs = [(results[i], expected[i]) for i in range(min(2, len(results)))]
        pairs += _shared_gradients(contender.module, results[2:], reference.module, expected[2:])
        error = max(_difference(a, b) for a, b in pairs)
        contender.facts["error"] = max(error, contender.facts.get("error", 0.0))
        if not error <= tolerance:
            raise Unequal(
                f"{contender.name} and {reference.name} of {case} {mode} differ by {error:.1e} in "
                f"{str(sample[0].dtype).removeprefix('torch.')}, more than {tolerance:.0e}: nothing was timed"
            )


def _shared_gradients(
    module: nn.Module, gradients: Sequence[torch.Tensor], reference: nn.Module, expected: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The gradients of all parameters of one name and shape as one vector: single ones may be zero up to rounding."""
    own = dict(zip(_names(module), gradients, strict=False))
    theirs = dict(zip(_names(reference), expected, strict=False))
    names = [name for name, value in own.items() if name in theirs and theirs[name].shape == value.shape]
    if not names:
        return []
    first, second = (torch.cat([group[name].flatten() for name in names]) for group in (own, theirs))
    return [(first, second)]


def _names(module: nn.Module) -> list[str]:
    """Names of parameters, those of a wrapped module without the wrapper's."""
    prefixes = ("_orig_mod.", "module.")
    names = []
    for name, _ in module.named_parameters():
        while name.startswith(prefixes):
            name = name.partition(".")[2]
        names.append(name)
    return names


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (t.detach().double() if t.device.type == "cpu" else t.detach().float() for t in (a, b))
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-30)).item()


def _compile(
    case: Case,
    mode: str,
    contenders: Sequence[_Contender],
    compiled: _Contender,
    step: Callable[..., tuple[torch.Tensor, ...]],
    sample: tuple[torch.Tensor, torch.Tensor],
    budget: CompileBudget,
) -> str:
    """Compiles one contender with a first call and checks the result. Returns a note if that fails."""
    started = time.perf_counter()
    reference = next(c for c in contenders if c.name in case.baselines)
    try:
        _check(case, mode, [reference, compiled], step, sample)
    except Unequal:
        raise
    except Exception as error:  # A failure is a result like another.
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    finally:
        budget.left -= time.perf_counter() - started
    return ""


def _count(
    contender: _Contender, step: Callable[..., Any], sample: tuple[torch.Tensor, torch.Tensor], mode: str, device: str
) -> dict[str, int]:
    """Memory and operators of one step."""
    facts: dict[str, int] = {}
    if mode == "f+b" and not contender.compiled:
        facts["kept"] = saved_bytes(contender.module, sample[0].detach().requires_grad_())
    if device == "cuda":
        facts |= _count_on_gpu(lambda: step(contender.module, *sample))
    elif not contender.compiled:
        facts["operators"] = count_pass(lambda: step(contender.module, *sample))[1].calls
    return facts


def _count_on_gpu(run: Callable[[], Any]) -> dict[str, int]:
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    facts = {"peak": torch.cuda.max_memory_allocated() - before}
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
    except RuntimeError:  # Some machines forbid profiling.
        return facts
    on_gpu = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return facts | {"operators": sum(not name.startswith(("Memcpy", "Memset")) for name in on_gpu)}


def _floor(
    case: Case, mode: str, contenders: Sequence[_Contender], ceilings: dict[str, float]
) -> dict[str, dict[str, float]]:
    """The time that the minimum of bytes and products takes at the speed measured here, and the share reached."""
    size = case.dtype.itemsize * torch.Size(case.shape).numel()
    peak = ceilings.get(f"product {str(case.dtype).removeprefix('torch.')}")
    if case.floor is None or peak is None or size < _SMALLEST_MAP:
        return {}
    ours = deepcopy(contenders[0].module).to("meta").train()
    traffic = count_traffic(ours, torch.empty(case.shape, dtype=case.dtype, device="meta"))
    floors = {
        "forward": max(case.floor.forward * size / ceilings["copy"], traffic.forward.flops / peak),
        "backward": max(case.floor.backward * size / ceilings["copy"], traffic.backward.flops / peak),
    }
    total = sum(floors.values()) if mode == "f+b" else floors["forward"]
    for contender in contenders:
        contender.facts["floor_share"] = float(f"{total / contender.facts['seconds']['p50']:.3g}")
    return {"floor": {name: float(f"{value:.4g}") for name, value in floors.items()}}


def _forward(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return (module(x),)


def _forward_backward(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    out = module(x)
    return out.detach(), *torch.autograd.grad(
        out, (x, *module.parameters()), weight, allow_unused=True, materialize_grads=True
    )

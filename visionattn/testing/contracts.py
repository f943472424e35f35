"""What every plug-in and every mixer promises, as checks that any package can run on its own classes:

    contracts.check_all(contracts.Subject("mixer", MyMixer, {"num_heads": 3}))

`subjects` gives those of this package, made of the cards.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

from visionattn import catalog

from .fixtures import relative_error

__all__ = ["CHECKS", "GRAPH_CHECKS", "SLOW_GRAPH_CHECKS", "Subject", "check_all", "perturbed", "subjects"]

SIZES = ((1, 1), (1, 9), (7, 1), (2, 3), (13, 13), (17, 9), (61, 5))
Check = Callable[["Subject"], None]


@dataclass(frozen=True)
class Subject:
    """The subject of the checks.

    Args:
        kind: `plugin` for maps `(B, C, H, W)`, `mixer` for `(B, H, W, C)`.
        constructor: Called with the width, keywords, `device` and `dtype`.
        keywords: Its keywords.
        discrete: Whether rounding may change results in jumps: a fifth of the values may differ in half precision.
        formula: Makes the literal formula, with its weights, of a module; none if there is none.
        width: Channels of the maps.
    """

    kind: catalog.Kind
    constructor: Callable[..., nn.Module]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    discrete: bool = False
    formula: Callable[[nn.Module], nn.Module] | None = None
    width: int = 24

    def build(self, **kwargs: Any) -> nn.Module:
        """The module at its start, the same at each call."""
        torch.manual_seed(0)
        return self.constructor(self.width, **self.keywords, **kwargs)

    def perturbed(self) -> nn.Module:
        """The module in eval mode, away from its start."""
        return perturbed(self.build().eval())

    def map(self, batch: int, height: int, width: int, **kwargs: Any) -> torch.Tensor:
        """A random map."""
        sides = (self.width, height, width) if self.kind == "plugin" else (height, width, self.width)
        return torch.randn(batch, *sides, **kwargs)


def subjects(card: catalog.Card) -> Iterator[tuple[str, Subject]]:
    """The variants of a card, each with its name; the first is compared with the literal formula."""
    formula = import_module(f"visionattn.reference.{card.reference}").naive_of if card.reference else None
    for number, (name, keywords) in enumerate(card.cases.items()):
        subject = Subject(card.kind, card.constructor, keywords, card.discrete, None if number else formula)
        yield f"{card.name}, {name}" if name else card.name, subject


def perturbed(module: nn.Module) -> nn.Module:
    """Moves a module away from its start, where gates and tables may be constant and hide mistakes; returns it."""
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                step = 0.2 if tensor.ndim < 2 or tensor.numel() < 4096 else 0.02
                tensor.add_(step * torch.rand(tensor.shape, generator=generator).to(tensor))
    return module


def check_all(subject: Subject) -> None:
    """Runs all checks but the slow ones; the first that fails raises.

    Raises:
        AssertionError: If a promise is broken.
    """
    for check in (*CHECKS[subject.kind], *GRAPH_CHECKS[subject.kind]):
        check(subject)


def keeps_the_shape_of_any_map(subject: Subject) -> None:
    for size in SIZES:
        for batch, train in ((1, False), (3, True)):
            x = subject.map(batch, *size, requires_grad=True)
            before = x.detach().clone()
            out = subject.build().train(train)(x)
            assert out.shape == x.shape and out.isfinite().all(), f"{size}, train={train}"
            out.sum().backward()
            assert x.grad is not None and x.grad.isfinite().all(), f"{size}, train={train}"
            assert torch.equal(x.detach(), before), f"its input was changed, {size}"


def gives_every_parameter_a_gradient(subject: Subject) -> None:
    module = subject.perturbed().train()
    module(subject.map(2, 9, 7, requires_grad=True)).square().sum().backward()
    without = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient for {without}"


def keeps_nothing_between_calls(subject: Subject) -> None:
    module, x = subject.perturbed(), subject.map(2, 10, 7)
    first = module(x)
    module(subject.map(2, 9, 8))
    assert torch.equal(module(x), first), "a call changed the next one"
    assert torch.equal(copy.deepcopy(module)(x), first), "a copy computes something else"


def images_of_a_batch_do_not_see_each_other(subject: Subject) -> None:
    module, x, order = subject.perturbed(), subject.map(3, 10, 9), [2, 0, 1]
    with torch.inference_mode():
        assert relative_error(module(x[order]), module(x)[order]) < 1e-6


def takes_any_layout(subject: Subject) -> None:
    module, x = subject.perturbed(), subject.map(2, 10, 7)
    expected = module(x)
    if subject.kind == "plugin":
        out = module(x.to(memory_format=torch.channels_last))
        assert out.is_contiguous(memory_format=torch.channels_last), "channels_last did not go through"
    else:
        out = module(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    assert relative_error(out, expected) < 1e-5
    wide = x.repeat_interleave(2, dim=-1)[..., ::2]
    assert relative_error(module(wide), expected) < 1e-5


def allows_changing_its_result_in_place(subject: Subject) -> None:
    """timm's residual blocks add the shortcut in place."""
    for size in ((9, 8), (61, 60)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = subject.map(2, *size).to(memory_format=layout).requires_grad_()
            module = subject.build().train()
            inside, beside = (
                torch.autograd.grad(shortcut(module(x), x).square().sum(), x)[0]
                for shortcut in (torch.Tensor.add_, torch.add)
            )
            assert relative_error(inside, beside) < 1e-5, f"{size}, {layout}"


def gives_the_dtype_it_gets(subject: Subject) -> None:
    x = subject.map(2, 10, 7)
    expected = subject.perturbed()(x)
    half, double = (subject.perturbed().to(dtype)(x.to(dtype)) for dtype in (torch.bfloat16, torch.float64))
    assert half.dtype == torch.bfloat16 and _half_error(subject, half, expected) < 0.05
    assert double.dtype == torch.float64 and relative_error(double, expected) < 1e-5


def works_under_autocast(subject: Subject) -> None:
    module, x = subject.perturbed(), subject.map(2, 10, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert _half_error(subject, out, module(x)) < 0.05


def is_built_on_meta_with_a_dtype(subject: Subject) -> None:
    module = subject.build(device="meta", dtype=torch.bfloat16)
    state = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in state)
    x = subject.map(2, 5, 6, device="meta", dtype=torch.bfloat16)
    assert module(x).shape == x.shape


def refuses_unknown_keywords(subject: Subject) -> None:
    try:
        subject.build(nonsense=1)
    except TypeError as error:
        assert "nonsense" in str(error)
    else:
        raise AssertionError("nonsense=1 was taken")


def can_start_again(subject: Subject) -> None:
    """Hosts initialise all layers their way, then let plug-ins start as their papers do."""
    module = subject.build()
    if not [*module.parameters()]:
        return
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    reset = module.reset_parameters
    assert callable(reset)
    reset()
    stale = [name for name, tensor in module.state_dict().items() if not tensor.isfinite().all()]
    assert not stale, f"reset_parameters leaves out {stale}"


def has_right_gradients(subject: Subject) -> None:
    for train in (False, True):
        module = subject.perturbed().double().train(train)
        x = subject.map(2, 5, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(module, (x,), fast_mode=True), f"train={train}"


def equals_its_literal_formula(subject: Subject) -> None:
    if subject.formula is None:
        return
    for train in (False, True):
        module = subject.perturbed().double()
        x = subject.map(2, 8, 8, dtype=torch.float64)
        weight, results = torch.randn_like(x), []
        for one in (module, subject.formula(module).double()):
            leaf = x.clone().requires_grad_()
            out = one.train(train)(leaf)
            results.append((out, *torch.autograd.grad(out, leaf, weight)))
        for what, ours, theirs in zip(("output", "gradient"), *results, strict=True):
            assert relative_error(ours, theirs) < 1e-6, f"{what}, train={train}"


def exports_with_dynamic_shapes(subject: Subject) -> None:
    """For any batch, and for any size of a plug-in's map."""
    module = subject.perturbed()
    program = torch.export.export(module, (subject.map(2, 9, 7),), dynamic_shapes=_dynamic(subject))
    x = _another_map(subject)
    assert relative_error(program.module()(x), module(x)) < 1e-5


def compiles_as_one_graph(subject: Subject) -> None:
    _compare_compiled(subject, backend="aot_eager", dynamic=False)


def converts_to_onnx(subject: Subject) -> None:
    """ONNX Runtime computes the same, for any batch, and for any size of a plug-in's map.

    Raises:
        ImportError: If onnxruntime is not installed.
    """
    from onnxruntime import InferenceSession

    module = subject.perturbed()
    program = torch.onnx.export(
        module, (subject.map(2, 9, 7),), dynamo=True, dynamic_shapes=_dynamic(subject), verbose=False
    )
    assert program is not None
    session = InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = _another_map(subject)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), module(x)) < 1e-5


def compiles_with_inductor(subject: Subject) -> None:
    _compare_compiled(subject, backend="inductor", dynamic=False)


def compiles_for_any_size(subject: Subject) -> None:
    _compare_compiled(subject, backend="aot_eager", dynamic=True)


def _half_error(subject: Subject, actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error, of four fifths of the values if rounding may change the others in jumps."""
    errors = (actual.double() - expected.double()).abs() / expected.double().abs().max()
    return errors.flatten().quantile(0.8 if subject.discrete else 1.0).item()


def _dynamic(subject: Subject) -> tuple[dict[int, Any], ...]:
    """Which dimensions of the map an exported graph leaves open; the grid decides the graph of a mixer."""
    return ({number: torch.export.Dim.DYNAMIC for number in ((0, 2, 3) if subject.kind == "plugin" else (0,))},)


def _another_map(subject: Subject) -> torch.Tensor:
    return subject.map(5, *((11, 13) if subject.kind == "plugin" else (9, 7)))


def _compare_compiled(subject: Subject, *, backend: str, dynamic: bool) -> None:
    torch.compiler.reset()
    module = subject.perturbed().train()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend=backend, dynamic=dynamic)
    for size in ((8, 6), (9, 7)) if dynamic else ((8, 6),):
        x, results = subject.map(2, *size), []
        for one in (module, compiled):
            leaf = x.clone().requires_grad_()
            out = one(leaf)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
        for eager, graph in zip(*results, strict=True):
            assert relative_error(graph, eager) < 1e-4, size


_COMMON: tuple[Check, ...] = (
    keeps_the_shape_of_any_map,
    gives_every_parameter_a_gradient,
    keeps_nothing_between_calls,
    images_of_a_batch_do_not_see_each_other,
    takes_any_layout,
    gives_the_dtype_it_gets,
    works_under_autocast,
    is_built_on_meta_with_a_dtype,
    refuses_unknown_keywords,
    has_right_gradients,
    equals_its_literal_formula,
)
# By kind: quick checks; those that make a graph of it, seconds each; and those of graphs that take longer still.
CHECKS: dict[str, tuple[Check, ...]] = {
    "plugin": (*_COMMON, allows_changing_its_result_in_place, can_start_again),
    "mixer": _COMMON,
}
GRAPH_CHECKS: dict[str, tuple[Check, ...]] = dict.fromkeys(
    CHECKS, (exports_with_dynamic_shapes, compiles_as_one_graph, converts_to_onnx)
)
SLOW_GRAPH_CHECKS: dict[str, tuple[Check, ...]] = {
    "plugin": (compiles_with_inductor, compiles_for_any_size),
    "mixer": (compiles_with_inductor,),
}

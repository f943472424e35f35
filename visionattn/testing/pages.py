"""Pages of the documentation site that follow from the cards: one for each mechanism, and an index of them.

The build of the site (`mkdocs build`, through docs/hooks.py) makes them; none is kept in a file.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import getdoc, getsource
from types import ModuleType
from typing import Any

import timm
import torch
from torch import nn

from visionattn.catalog import Card, cards, module_of
from visionattn.models.mechanisms import networks_of
from visionattn.profiling.cost import count_macs

from .evidence import fixtures_of, golden_of, has_kernels
from .flow import draw_flow
from .generated import ROOT
from .measured import losses, speed
from .pictures import picture

__all__ = ["drawing", "mechanism_pages", "path_of", "usage"]

# Networks to state costs in, the first that a mechanism has: beginnings and ends of their names, and what each is
# compared with. Hosts without the mechanism come first, then the same architecture with plain attention.
_HOSTS = (
    ("va_resnet50_", "", "resnet50"),
    ("va_resnet10n_", "", "va_resnet10n"),
    ("va_vit_", "_tiny", "va_vit_softmax_tiny"),
    ("va_stm_", "_micro", "va_stm_swin_micro"),
    ("va_stm_", "_nano", "va_stm_softmax_nano"),
)
# Width and side of the map for which a module alone is counted; widths of all variants' heads and groups divide it.
_WIDTH, _SIDE = 96, 28
_KINDS = {"plugin": "plug-in for feature maps", "mixer": "token mixer", "frontend": "front-end for pictures"}
_SHAPES = {"plugin": "(B, C, H, W)", "mixer": "(B, H, W, C)", "frontend": "(B, 3, H, W)"}
_YES = {True: "yes", False: "no"}


def mechanism_pages(profile: Callable[[str], str | None] = lambda name: None) -> dict[str, str]:
    """Markdown of the index of all mechanisms and of the page of each, by path in the site.

    Args:
        profile: Draws the results of a mechanism in the diagnostics as SVG; none where it has no row.
    """
    networks = {card.kind: networks_of(cards(card.kind)) for card in cards()}
    pages = {path_of(card): _page(card, networks[card.kind][card.name], profile) for card in cards()}
    return {"mechanisms/index.md": _index(), **pages}


def path_of(card: Card) -> str:
    """Path of the page of a mechanism in the site."""
    return f"mechanisms/{card.kind}s/{card.name}.md"


def usage(card: Card, networks: list[str]) -> dict[str, str]:
    """Runnable code that uses a mechanism: heading -> Python.

    Args:
        card: The mechanism.
        networks: Names of its networks.
    """
    shown = {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in next(iter(card.cases.values())).items())
    if card.factory is not None:
        room, cls = module_of(card).__name__.split(".")[1], _class_of(card)
        shape = ", ".join(map(str, (2, *_shape(card))))
        # A preset is an object of its own, named as the card is.
        name = str(cls.__name__) if cls is card.factory else card.name
        call = f"{name}({_width(card)}{', ' if arguments else ''}{arguments})"
        lines = ["import torch", f"from visionattn.{room} import {name}", "", f"block = {call}"]
        if card.further_inputs:
            lines = [*lines[1:-1], f"{lines[-1]}  # called with the map and: {', '.join(card.further_inputs)}"]
        else:
            lines.append(f"y = block(torch.randn({shape})){'' if card.kind == 'head' else '  # the shape stays'}")
        shown["As a block"] = "\n".join(lines)
    start = ["import timm", "import visionattn", ""]
    if card.kind == "plugin" and card.standalone:
        lines = ['model = timm.create_model("resnet18")  # pretrained=True keeps its weights']
        lines += [f'visionattn.attach(model, "{card.name}")  # starts as an exact identity', "print(model.attached)"]
        shown["In a network that is there already"] = "\n".join([*start, *lines])
    if card.kind == "mixer" and card.standalone:
        weights = "" if card.keeps_weights else ', weights="new"'
        lines = ['model = timm.create_model("deit_small_patch16_224")  # pretrained=True keeps its weights']
        lines += [f'visionattn.replace_attention(model, "{card.name}", blocks=[-2, -1]{weights})']
        shown["In a network that is there already"] = "\n".join([*start, *lines, "print(model.replaced)"])
    if networks:
        host = _host(networks)
        shown["By name"] = "\n".join([*start, f'model = timm.create_model("{host[0] if host else networks[0]}")'])
    return shown


def drawing(card: Card) -> str:
    """The data flow of a mechanism as SVG, with the shapes of what goes in and comes out at its ends.

    Args:
        card: The mechanism.

    Raises:
        ValueError: If its card says nothing of it, or what can't be read.
    """
    if not card.flow:
        raise ValueError(f"the card of {card.name!r} has no flow; visionattn.testing.flow says how to write one")
    inside, outside = _SHAPES.get(card.kind, ""), "y, same shape"
    if card.factory is not None and (card.kind not in _SHAPES or card.further_inputs):
        # Of the class's own docstring: `(B, N, C), (B, M, C) -> (B, N, 4 C)`.
        found = re.search(r"`(\([^)]*\)).*?-> (\([^)]*\))", getdoc(_class_of(card)) or "", re.DOTALL)
        if found:
            inside, outside = found[1], f"y {found[2]}" if found[2] != found[1] else outside
    return draw_flow(card.flow, f"Data flow of {card.title}", f"x {inside}", outside)


def _page(card: Card, networks: list[str], profile: Callable[[str], str | None]) -> str:
    module = module_of(card)
    kind = _KINDS.get(card.kind, card.kind)
    lines = [f"# {card.title}", "", f"`{card.name}`, a {kind}: {card.summary}.", "", _paper(card), ""]
    lines += [f'<div class="flow">{drawing(card)}</div>', ""]
    if card.factory is not None:
        cls = _class_of(card)
        lines += [
            "## What it does",
            "",
            *_description(cls),
            f"Arguments, errors and methods: {_api(cls)}.",
            "",
        ]
    if card.placement:
        lines += ["## Where it goes", "", _sentence(card.placement), ""]
    lines += ["## Use", ""]
    for heading, code in usage(card, networks).items():
        lines += [f"{heading}:", "", "```python", code, "```", ""]
    if len(networks) > 1:
        lines += ['??? note "All networks with it"', "", *(f"    - `{name}`" for name in networks), ""]
    lines += ["## Cost", "", *_costs(card, networks), ""]
    lines += picture(card)
    lines += ["## When not to use it", "", *_limits(card, networks), ""]
    lines += ["## Proof", "", *_proof(card, module), ""]
    lines += speed(card, networks)
    lines += _profile(profile(card.name))
    lines += _trained(networks)
    lines += _formula(card)
    return "\n".join(lines)


def _index() -> str:
    lines = [
        "# Mechanisms",
        "",
        f"{len(list(cards()))} of them, each with what it does, code, costs and proof. **cost** is the growth of time "
        "and memory with the number of positions N; w is the number of keys that a query sees, r the factor by which "
        "the side of the keys' map is reduced. **keeps weights**: takes over the projections of softmax attention. "
        "**kernel**: an operation of it has Triton kernels. **map**: gives an attention map or a spatial gate.",
        "",
        '<div class="mechanisms" markdown>',
        "",
        "| name | kind | what it does | cost | keeps weights | kernel | map | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for card in cards():
        link = path_of(card).removeprefix("mechanisms/")
        cells = [f"[`{card.name}`]({link})", card.kind, card.summary, card.cost, _YES[card.keeps_weights]]
        cells += [_YES[has_kernels(card)], _YES[card.maps], _reference(card)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, "", "</div>", ""])


def _paper(card: Card) -> str:
    code = f"[{card.code}]({card.code}) ({card.license or 'states no licence'})" if card.code else "none"
    return f"Paper: {_reference(card)}. Official code: {code}."


def _reference(card: Card) -> str:
    number = card.paper.removeprefix("arXiv:")
    return card.paper if number == card.paper else f"[arXiv {number}](https://arxiv.org/abs/{number})"


def _description(cls: Any) -> list[str]:
    """The paragraphs of a docstring in front of its arguments."""
    text = (getdoc(cls) or "").split("\nArgs:")[0].split("\nRaises:")[0].strip()
    return [*text.splitlines(), ""] if text else []


def _formula(card: Card) -> list[str]:
    """The literal formula of the paper, which tests compare a module with."""
    if card.reference is None:
        return []
    source = getsource(import_module(f"visionattn.reference.{card.reference}"))
    lines = ["## Formula", "", f"Literally, as `visionattn/reference/{card.reference}.py` has it:", ""]
    return [*lines, "```python", *source.rstrip().splitlines(), "```", ""]


def _costs(card: Card, networks: list[str]) -> list[str]:
    memory = f"; of the memory that inference holds at once: {card.memory}" if card.memory else ""
    lines = [f"Growth of time and memory with the number of positions N: {card.cost}{memory}.", ""]
    rows = []
    if card.standalone:
        with torch.device("meta"):
            block: nn.Module = card.constructor(_width(card), **next(iter(card.cases.values())))
        # Two maps at a time: what normalises single vectors needs two.
        macs = count_macs(block, _shape(card), batch=2)
        rows.append((f"the module alone, {_width(card)} channels, {_SIDE} x {_SIDE}", _size(block), macs))
    for name, remark in zip(_host(networks) or networks[:1], ("", ", for comparison"), strict=False):
        rows.append((f"`{name}`{remark}", *_network_cost(name)))
    if rows:
        lines += ["| | parameters | MACs (M) |", "|---|---|---|"]
        lines += [f"| {what} | {params:,} | {macs / 1e6:,.2f} |" for what, params, macs in rows]
        lines += ["", "Multiplications with additions of one picture in convolutions and matrix products, counted."]
    if card.floor:
        forward, backward = card.floor.forward, card.floor.backward
        lines += ["", f"Least traffic through memory: {forward:g} times the bytes of the map forward and {backward:g} "]
        lines[-1] += f"backward ({card.floor.reason})."
    return lines


def _limits(card: Card, networks: list[str]) -> list[str]:
    """Where a mechanism is out of place: the sentence of its card, what follows from the card, what was measured."""
    facts = []
    if card.further_inputs:
        facts.append(f"It needs more than a map: {', '.join(card.further_inputs)}.")
    if "N^2" in card.cost:
        facts.append(f"Time grows with the number of positions N as {card.cost}.")
    if card.kind == "mixer" and card.factory is not None and not card.keeps_weights:
        facts.append("In a pretrained transformer it starts with new weights: it has no place for softmax attention's.")
    if card.discrete:
        facts.append("It chooses (clusters, largest scores), so rounding may change a result in jumps.")
    if card.kind != "baseline" and not has_kernels(card):
        facts.append("It has no Triton kernel; on a GPU it runs as PyTorch's own operations.")
    if card.kind in ("plugin", "mixer") and not card.maps:
        facts.append("It gives neither an attention map nor a spatial gate to look at.")
    if card.code is None:
        facts.append("There is no official code that it could be compared with.")
    return [f"Not {card.avoid}.", "", *(f"- {fact}" for fact in (*facts, *losses(card, networks)))]


def _profile(drawn: str | None) -> list[str]:
    """What a mechanism makes easy to learn, if the diagnostics have a row of it."""
    if drawn is None:
        return []
    said = "Points more than the baseline of its host on small generated tasks, and how sure they are"
    link = "[Which attention for what](../../guides/diagnostics.md)"
    return [
        "## Diagnostics profile",
        "",
        f"{said}. {link} says what each asks.",
        "",
        f'<div class="profile">{drawn[drawn.index("<svg") :]}</div>',
        "",
    ]


def _proof(card: Card, module: ModuleType) -> list[str]:
    file = module.__name__.replace(".", "/").removeprefix("visionattn/")
    stem = file.rpartition("/")[2]
    lines = []
    fixtures = fixtures_of(card)
    if fixtures:
        names = ", ".join(f"`{name}`" for name in fixtures)
        what = re.search(r"\(.*?\)", golden_of(card))
        found = f"{len(fixtures)} recorded results{' ' + what[0] if what else ''}"
        lines.append(f"- {found} that its file is compared with, in `tests/golden`: {names}.")
    elif golden := golden_of(card):
        lines.append(f"- Recorded results of an official code: {golden}")
    tests = [path for path in (f"tests/{file.rpartition('/')[0]}/test_{stem}.py",) if (ROOT / path).is_file()]
    lines += [f"- Tests of its own: `{path}`." for path in tests]
    if card.standalone and card.kind != "head":
        variants = len(card.cases)
        lines.append(
            f"- Contract tests of {'its ' + str(variants) + ' variants' if variants > 1 else 'it'} (any size, layout, "
            f"batch and dtype, gradients, export): `pytest tests/contracts -k {card.name}`."
        )
    if has_kernels(card):
        lines.append("- Its Triton kernels are tested in Triton's interpreter; see [kernels](../../guides/kernels.md).")
    return [*lines, "", *_differences(module)]


def _differences(module: ModuleType) -> list[str]:
    found = re.search(r"^Differs from the official code in:?\s*(.*?)\n\s*\n", module.__doc__ or "", re.M | re.S)
    if not found:
        return []
    items = found[1] if found[1].startswith("- ") else f"- {found[1]}"
    return ["Differs from the official code in:", "", *items.splitlines()]


def _trained(networks: list[str]) -> list[str]:
    """Published checkpoints of the networks, with their scores."""
    entries = json.loads((ROOT / "checkpoints" / "manifest.json").read_text(encoding="utf-8"))["checkpoints"]
    found = sorted(name for name in entries if name.partition(".")[0] in networks)
    if not found:
        return []
    links = ", ".join(f"`{name}`" for name in found)
    text = f"Checkpoints that load by name, with `pretrained=True`: {links}. [All of them](../../networks.md)"
    return ["## Weights", "", f"{text}.", ""]


def _host(networks: list[str]) -> tuple[str, str] | None:
    """The network to state costs in, and what it is compared with."""
    for start, end, baseline in _HOSTS:
        for name in networks:
            if name.startswith(start) and name.endswith(end) and name != baseline and timm.is_model(baseline):
                return name, baseline
    return None


@cache
def _network_cost(name: str) -> tuple[int, int]:
    network = timm.create_model(name, device="meta")
    cfg: Any = network.pretrained_cfg
    return _size(network), count_macs(network, cfg["input_size"], batch=2)


def _width(card: Card) -> int:
    """Channels of the map that a module alone is shown with; front-ends see pictures."""
    return 3 if card.kind == "frontend" else _WIDTH


def _shape(card: Card) -> tuple[int, ...]:
    """Sides of that map, without the batch; heads see its tokens."""
    if card.kind == "head":
        return _SIDE * _SIDE, _WIDTH
    return (_SIDE, _SIDE, _WIDTH) if card.kind == "mixer" else (_width(card), _SIDE, _SIDE)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _class_of(card: Card) -> Any:
    return getattr(card.factory, "func", card.factory)


def _api(cls: Any) -> str:
    return f"[`{cls.__name__}`](../../api/{cls.__module__.split('.')[1]}.md#{cls.__module__}.{cls.__name__})"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."

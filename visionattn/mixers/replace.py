"""Replaces attention by another mixer in vision transformers of timm and of this package."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from visionattn import catalog
from visionattn.catalog import BlockContext, Card
from visionattn.utils.arguments import check_choice
from visionattn.utils.factory import FactoryKwargs
from visionattn.utils.modifications import record_modification
from visionattn.utils.tables import format_table

from ._resolve import resolve_mixer
from ._sites import SOUGHT, Site, find_sites

__all__ = ["Replacement", "Replacements", "replace_attention"]

# What a mixer that keeps weights takes over, under the same names.
_KEPT = ("qkv", "proj", "q_norm", "k_norm")


@dataclass(frozen=True)
class Replacement:
    """One attention that was replaced: its name in the model, its width and heads, the mixer, and its new weights."""

    name: str
    dim: int
    num_heads: int
    mixer: str
    new: tuple[str, ...]


class Replacements(list[Replacement]):
    """The replacements in a model; prints as a table."""

    def __str__(self) -> str:
        rows = [("attention", "width", "heads", "mixer", "new weights")]
        rows += [(r.name, str(r.dim), str(r.num_heads), r.mixer, ", ".join(r.new) or "none") for r in self]
        return format_table(rows)


def replace_attention(
    model: nn.Module,
    mixer: str | dict[str, Any] | Callable[..., nn.Module],
    blocks: int | Iterable[int] | None = None,
    weights: str = "keep",
    **kwargs: Any,
) -> nn.Module:
    """Replaces a vision transformer's attention by a mixer, in some or all blocks; modifies and returns the model.

    `model.replaced` then lists where (`print(model.replaced)` shows a table), and `model.modifications` notes the call
    as plain data, so that a published file builds the network again. Entries of the state dict that stay keep their
    names; with `weights="keep"` those of the projections stay too.

    Extra tokens (class token, registers, distillation) are mixed with the patches by mixers of tokens, those with
    `forward_tokens`. Mixers of maps (windows, convolutions) mix the patches only; the extra tokens keep softmax
    attention as queries over all tokens.

    Positions: what the host adds to its tokens stays. What it hands to its attention (rotary embeddings, a bias for
    each distance) is handed to the mixer, and it is an error where the mixer cannot take it. The bias of Swin's windows
    belongs to the windows: it goes with them, unless a mixer of the same windows takes it over.

    Args:
        model: A transformer of timm (ViT, DeiT, BEiT, EVA, CaiT, XCiT, Swin, Swin V2, DaViT and what is built of their
            blocks) or one of ours.
        mixer: A name of `visionattn.list_mixers()`, a class that takes the width, or a dict with `type` and further
            arguments.
        blocks: Which attentions, counted from 0 in the order of the network, negative ones from the end; all if none.
        weights: `keep`: the mixer takes over `qkv` and `proj` (and norms of queries and keys); where the mixer is
            softmax attention in another form, the outputs stay what they were. `new`: it starts anew.
        **kwargs: For the mixer. By default it gets the heads, dropout rates and biases of the attention before it.

    Raises:
        ValueError: If an argument is unknown, a block does not exist or is replaced already, the network has no
            attention to replace, or the mixer cannot take the width, the heads, the weights or the positions there.
    """
    check_choice("weights", weights, ("keep", "new"))
    build = resolve_mixer(mixer)
    card = _card_of(build)
    name = card.name if card else getattr(build, "__name__", str(mixer))
    if weights == "keep" and card and not card.keeps_weights:
        keeping = sorted(other.name for other in catalog.cards("mixer") if other.keeps_weights and other.standalone)
        raise ValueError(
            f"{name} has no place for attention's own weights: pass weights='new', or one of {', '.join(keeping)}"
        )
    sites = find_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no attention that can be replaced; looked for {SOUGHT}")
    blocks = blocks if blocks is None or isinstance(blocks, int) else list(blocks)
    chosen = _choose(sites, blocks)
    # All are built before the first is put in: an error leaves the network as it was.
    built = [_build(build, card, name, number, site, weights == "keep", kwargs) for number, site in chosen]
    for (_, site), (new, _) in zip(chosen, built, strict=True):
        site.install(new, weights == "keep")
    done = [
        Replacement(site.name, site.dim, int(getattr(new, "num_heads", 1)), type(new).__name__, fresh)
        for (_, site), (new, fresh) in zip(chosen, built, strict=True)
    ]
    host: Any = model
    host.replaced = Replacements([*getattr(model, "replaced", ()), *done])
    arguments = {"mixer": _as_data(mixer, card), "blocks": blocks, "weights": weights, **kwargs}
    record_modification(model, "replace_attention", arguments)
    return model


def _card_of(build: Any) -> Card | None:
    inner = getattr(build, "func", build)  # a config became a partial
    return next((card for card in catalog.cards("mixer") if card.standalone and card.factory is inner), None)


def _choose(sites: list[Site], blocks: int | Iterable[int] | None) -> list[tuple[int, Site]]:
    if blocks is None:
        return list(enumerate(sites))
    wanted = [blocks] if isinstance(blocks, int) else list(blocks)
    numbers = {block + len(sites) if block < 0 else block for block in wanted}
    if not numbers or not numbers.issubset(range(len(sites))):
        raise ValueError(f"blocks must be some of 0 to {len(sites) - 1} (-1 is the last), got {wanted}")
    return [(number, site) for number, site in enumerate(sites) if number in numbers]


def _build(
    build: Callable[..., nn.Module],
    card: Card | None,
    name: str,
    number: int,
    site: Site,
    keep: bool,
    kwargs: dict[str, Any],
) -> tuple[nn.Module, tuple[str, ...]]:
    """The mixer for a site, and the names of its new weights."""
    before = site.attention
    taken = signature(build).parameters
    dropped = {key: float(getattr(getattr(before, key, None), "p", 0.0)) for key in ("attn_drop", "proj_drop")}
    context = BlockContext(0, number, site.dim, 0.0, num_heads=site.num_heads, grid=site.grid, **dropped)
    given = dict(context.keywords)
    state, left = _weights_of(before)
    if keep:
        if left:
            raise ValueError(f"{name} has no place for {', '.join(left)} of {site.name}: pass weights='new'")
        given["qkv_bias"] = "qkv.bias" in state
        given["rel_pos"] = "relative_position_bias_table" in state and "bias" not in site.position
        given["qk_norm"] = hasattr(before, "q_norm") and not isinstance(before.q_norm, nn.Identity)
        if given["qk_norm"] and "qk_norm" not in taken:
            raise ValueError(
                f"{name} has no place for the norms of queries and keys at {site.name}: pass weights='new'"
            )
    own = dict(card.keywords(context)) if card and card.keywords else {}
    given = {key: value for key, value in {**given, **own, **site.keywords}.items() if key in taken}
    weight = next(p for p in before.parameters() if p.is_floating_point())
    dd: FactoryKwargs = {"device": weight.device, "dtype": weight.dtype}
    try:
        new = build(site.dim, **{**given, **kwargs}, **dd)
    except ValueError as error:
        raise ValueError(f"{name} does not fit {site.name}: {error}") from error
    _check_positions(new, name, site)
    return new, _take_over(new, name, site, state) if keep else tuple(key for key, _ in new.named_parameters())


def _weights_of(attention: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights of softmax attention under our names, and the names of other weights."""
    own = {key: value for key, value in attention.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    if {"q_proj.weight", "k_proj.weight", "v_proj.weight"} <= own.keys():
        state["qkv.weight"] = torch.cat([own.pop(f"{part}_proj.weight") for part in "qkv"])
        biases = [own.pop(f"{part}_proj.bias", None) for part in "qkv"]
    else:
        biases = [own.pop(f"{part}_bias", None) for part in "qkv"]
    found = next((bias for bias in biases if bias is not None), None)
    if found is not None:  # keys may have none: it would change no weight
        state["qkv.bias"] = torch.cat([torch.zeros_like(found) if bias is None else bias for bias in biases])
    for key in [key for key in own if key.partition(".")[0] in _KEPT]:
        state[key] = own.pop(key)
    table = own.pop("relative_position_bias_table", None)
    if table is not None:
        state["relative_position_bias_table"] = table
    return state, sorted({key.partition(".")[0] for key in own})


def _check_positions(new: Any, name: str, site: Site) -> None:
    takes = signature(new.forward_tokens).parameters if hasattr(new, "forward_tokens") else {}
    for what in site.position:
        if what not in takes:
            words = {"rotate": "rotary embeddings", "bias": "a bias for each distance"}[what]
            raise ValueError(f"attention at {site.name} gets {words}, which {name} cannot take")


def _take_over(new: nn.Module, name: str, site: Site, state: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Loads the weights of the replaced attention into a mixer; returns the names of its remaining weights."""
    own = new.state_dict()
    if "bias" in site.position:  # the host goes on to hand it
        state = {key: value for key, value in state.items() if key != "relative_position_bias_table"}
    wrong = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    if wrong:
        sizes = ", ".join(
            f"{key} {tuple(state[key].shape)}" + (f" (here {tuple(own[key].shape)})" if key in own else "")
            for key in wrong
        )
        raise ValueError(f"{name} has no place for these weights of {site.name}: {sizes}; pass weights='new'")
    for part in ("q_norm", "k_norm"):  # of whatever kind the host has
        if hasattr(new, part) and hasattr(site.attention, part):
            setattr(new, part, getattr(site.attention, part))
    new.load_state_dict(state, strict=False)
    return tuple(key for key, _ in new.named_parameters() if key not in state)


def _as_data(mixer: Any, card: Card | None) -> Any:
    """What was asked for with names only; a class that has none is named by where it is defined."""
    if isinstance(mixer, dict):
        return {**mixer, "type": _as_data(mixer["type"], card)}
    if isinstance(mixer, str):
        return mixer
    return card.name if card else f"{mixer.__module__}.{mixer.__qualname__}"

"""The card of a mechanism, and the index of all cards.

A card stands at the end of the file that implements a paper, as `CARD` or, where one paper brings several mechanisms,
as `CARDS`. It is the only place that says what the mechanism is; names, networks, contract tests, tables and
documentation are derived from it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import signature
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from visionattn.utils.exports import public_modules
from visionattn.utils.map_input import check_maps

__all__ = ["BlockContext", "Card", "Floor", "Kind", "cards", "find", "get", "module_of", "resolve"]

Kind = Literal["plugin", "mixer", "frontend", "head", "method", "tool", "baseline"]
_WORDS: dict[Kind, str] = {"plugin": "plug-in", "frontend": "front-end"}
# Rooms whose files end in cards.
_ROOMS = ("visionattn.plugins", "visionattn.mixers", "visionattn.heads")


@dataclass(frozen=True)
class Floor:
    """The minimum memory traffic of any implementation, in T, the bytes of the input; what fits on chip is free.

    Token mixers read and write 6 T in their projections forward and 12 T backward; these stay separate products.

    Args:
        forward: Forward pass.
        backward: Backward pass, which recomputes what is cheaper than to keep.
        reason: Which passes these are; R reads the map or one as large, W writes one.
    """

    forward: float
    backward: float
    reason: str


@dataclass(frozen=True)
class BlockContext:
    """The position of a block in a network and its drop rates: all that a card or a family needs to choose its parts.

    Args:
        stage: Number of the stage, from 0.
        block: Number of the block in the stage, from 0.
        dim: Width of the stage.
        drop_path: Rate of stochastic depth here; it grows linearly from 0 at the first block of the network.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout after projections and in MLPs.
        num_heads: Heads of the stage; 1 in hosts that do not set it.
        grid: Height and width of the map at the nominal image size; none in hosts that do not set it.
    """

    stage: int
    block: int
    dim: int
    drop_path: float = 0.0
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    num_heads: int = 1
    grid: tuple[int, int] | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of this block that a mixer accepts: number of heads and drop rates."""
        return {"num_heads": self.num_heads, "attn_drop": self.attn_drop, "proj_drop": self.proj_drop}


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """The description of a mechanism.

    Args:
        name: Name in lower case, as in `attach(model, name)` and in the names of networks.
        title: Name in words, such as `CBAM: Convolutional Block Attention Module`.
        kind: `plugin` (`(B, C, H, W)` maps), `mixer` (`(B, H, W, C)` maps), `frontend` (pictures), `head`, `method`,
            `tool`, or `baseline`: timm's own networks, named here and not made again.
        factory: The class, or a function that builds the module: called with the number of channels or the width, and
            keywords. None if the mechanism only says which mixers the blocks of a network have, see `mixers`, or is a
            baseline.
        summary: One line on what it does.
        flow: One line that its data flow is drawn from, in the language of `visionattn.testing.flow`: steps that follow
            each other by `->`, branches as `(a | b)`; without the map at both ends.
        paper: `arXiv:NUMBER`, or another full reference.
        code: Address of the official code; none if there is none.
        license: Licence of the official code; none if it states none or there is none.
        placement: One sentence on where the paper puts it in a network.
        avoid: When not to use it, in one sentence that follows "Not": what its construction rules out, what it was not
            made for, where it was measured to lose.
        hosts: Plug-ins: the residual networks to register it in, any of `resnet`, `mobilenet`, `narrow`.
        pyramid: Mixers: sizes to register as `va_stm_<name>_<size>`, of `nano`, `micro`, `tiny`, `small`, `base`.
        columnar: Mixers: sizes to register as `va_vit_<name>_<size>`, of `nano`, `tiny`.
        keywords: Mixers: keywords of `factory` in a block of a host, from its `BlockContext`, besides the context's own
            `keywords`, which it gets as far as it takes them.
        mixers: Builds the mixers of a block of a host by name, from a `BlockContext`, device and dtype; by default
            the one that `factory` builds, as `attn`.
        position: Builds the position encoding in front of the mixers from the same; may give none.
        block_norm_eps: Epsilon of the layer norms of the blocks in the pyramid.
        cases: Contract tests: name of a variant -> keywords of `factory`, at a width of 24. The first is the default
            variant, which `reference` must cover.
        floor: Least bytes moved.
        cost: Growth of time and memory with the number of positions N, such as `N`, `N w`, `N^2`; w is the number of
            keys that a query sees, r the factor by which the side of the keys' map is reduced.
        memory: Growth of the memory that inference holds at once where it is another one, such as `N` where the weights
            of all pairs are computed piece by piece.
        keeps_weights: Whether it can take over softmax attention's own `qkv` and `proj`.
        maps: Whether it gives an attention map or a spatial gate.
        discrete: Whether it chooses (clusters, largest scores), so that rounding may change a result in jumps.
        further_inputs: Names of the inputs besides the map. What needs some is left out of `list_plugins` and has
            networks of its own.
        reference: Module of `visionattn.reference` whose `naive_of` gives the literal formula; none if there is none.

    Raises:
        ValueError: If there is neither `factory` nor `mixers`, and it is no baseline.
    """

    name: str
    title: str
    kind: Kind
    factory: Callable[..., Any] | None
    summary: str
    paper: str
    flow: str = ""
    code: str | None = None
    license: str | None = None
    placement: str = ""
    avoid: str = ""
    hosts: tuple[str, ...] = ()
    pyramid: tuple[str, ...] = ()
    columnar: tuple[str, ...] = ()
    keywords: Callable[[BlockContext], Mapping[str, Any]] | None = None
    mixers: Callable[..., dict[str, Any]] | None = None
    position: Callable[..., Any] | None = None
    block_norm_eps: float = 1e-6
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({"": {}}))
    floor: Floor | None = None
    cost: str = "N"
    memory: str = ""
    keeps_weights: bool = False
    maps: bool = False
    discrete: bool = False
    further_inputs: tuple[str, ...] = ()
    reference: str | None = None

    def __post_init__(self) -> None:
        if self.factory is None and self.mixers is None and self.kind != "baseline":
            raise ValueError(f"the card of {self.name!r} needs a factory or mixers")
        if self.kind == "mixer" and not self.further_inputs:  # those check themselves
            check_maps(self.factory)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Card":
        """The card itself, which is immutable: networks built from one can be copied."""
        return self

    @property
    def standalone(self) -> bool:
        """Whether the mechanism is a module that needs no input but a map."""
        return self.factory is not None and not self.further_inputs

    @property
    def constructor(self) -> Callable[..., Any]:
        """The constructor of the module.

        Raises:
            ValueError: If the mechanism is no module of its own.
        """
        if self.factory is None:
            raise ValueError(f"{self.name!r} stands for several {self.kind}s that take turns: name one of them")
        return self.factory

    def build_in(self, context: BlockContext, **dd: Any) -> Any:
        """The module for a block of a host, with `device` and `dtype`."""
        taken = signature(self.constructor).parameters
        given = {name: value for name, value in context.keywords.items() if name in taken}
        own = self.keywords(context) if self.keywords else {}
        return self.constructor(context.dim, **{**given, **own}, **dd)

    def build_mixers(self, context: BlockContext, **dd: Any) -> dict[str, Any]:
        """All mixers of a block of a host by name, with `device` and `dtype`."""
        return self.mixers(context, **dd) if self.mixers else {"attn": self.build_in(context, **dd)}

    def build_position(self, context: BlockContext, **dd: Any) -> Any | None:
        """The position encoding before the mixers, with `device` and `dtype`, or none."""
        return self.position(context, **dd) if self.position else None


@cache
def _index() -> dict[tuple[Kind, str], Card]:
    """Every card by kind and name."""
    return {key: card for key, (card, _) in _homes().items()}


@cache
def _homes() -> dict[tuple[Kind, str], tuple[Card, ModuleType]]:
    """Every card and the module that defines it, by kind and name."""
    index: dict[tuple[Kind, str], tuple[Card, ModuleType]] = {}
    for file in (file for room in _ROOMS for file in public_modules(room)):
        for card in (*getattr(file, "CARDS", ()), *([file.CARD] if hasattr(file, "CARD") else ())):
            if (card.kind, card.name) in index:
                raise ValueError(f"two cards are named {card.name!r}; the second is in {file.__name__}")
            index[card.kind, card.name] = card, file
    return index


def module_of(card: Card) -> ModuleType:
    """The module that defines a card."""
    return _homes()[card.kind, card.name][1]


def cards(kind: Kind | None = None) -> Iterator[Card]:
    """All cards, or those of a kind, by name."""
    return (card for (own, _), card in sorted(_index().items()) if kind in (None, own))


def get(kind: Kind, name: str) -> Card:
    """The card of this kind and name.

    Raises:
        ValueError: If there is none.
    """
    try:
        return _index()[kind, name]
    except KeyError:
        names = ", ".join(card.name for card in cards(kind) if card.standalone)
        raise ValueError(f"unknown {_WORDS.get(kind, kind)} {name!r}; there are: {names}") from None


def find(text: str = "", kind: Kind | None = None) -> list[Card]:
    """Cards whose name, title, summary or paper contains a text, ignoring case.

    Args:
        text: What to look for; everything matches an empty text.
        kind: Only cards of this kind.
    """
    wanted = text.casefold()
    return [c for c in cards(kind) if any(wanted in part.casefold() for part in (c.name, c.title, c.summary, c.paper))]


def resolve(kind: Kind, what: str | dict[str, Any] | Callable[..., Any]) -> Callable[..., Any]:
    """The constructor for a name, a class or a config; call it with the number of channels or the width.

    Args:
        kind: Which kind of mechanism a name is of.
        what: A name, a class, or a dict with `type` (either of these) and further arguments.

    Raises:
        ValueError: If the name is unknown, or of a mechanism that is no module of its own.
        TypeError: If a dict has no `type`, or `what` is neither of the three.
    """
    word = _WORDS.get(kind, kind)
    if isinstance(what, dict):
        if "type" not in what:
            raise TypeError(f"a {word}'s config needs a 'type', got {what}")
        arguments = {key: value for key, value in what.items() if key != "type"}
        return partial(resolve(kind, what["type"]), **arguments)
    if isinstance(what, str):
        card = get(kind, what)
        if card.further_inputs:
            inputs = ", ".join(card.further_inputs)
            raise ValueError(f"{word} {what!r} needs more than a map ({inputs}): only its own networks can hold it")
        return card.constructor
    if callable(what) and (isinstance(what, type) or not hasattr(what, "forward")):
        return what
    raise TypeError(f"a {word} is a name, a class or a dict, got {what!r}")

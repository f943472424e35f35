"""The cards themselves: complete, found by name, and all that is public has one."""

import inspect
import re
from importlib import import_module

import pytest
from torch import nn

import visionattn
from visionattn import catalog, mixers, plugins
from visionattn.catalog import BlockContext, Card

CARDS = [*catalog.cards()]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_says_what_it_is(card):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", card.name)
    assert card.title and card.summary and card.placement and card.cost
    assert not card.summary.endswith(".") and not card.placement.endswith(".")
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", card.paper) or len(card.paper.split()) > 3
    assert card.code is None or re.fullmatch(r"https://\S+[^/]", card.code)
    assert card.code or not card.license
    assert set(card.hosts) <= {"resnet", "mobilenet", "narrow"} and (card.kind == "plugin" or not card.hosts)
    assert set(card.pyramid) <= {"nano", "micro", "tiny", "small", "base"} and set(card.columnar) <= {"nano", "tiny"}
    assert card.kind == "mixer" or not (card.pyramid or card.columnar)
    assert card.standalone or not card.hosts
    if card.standalone:
        first = next(inspect.signature(card.constructor).parameters.values().__iter__())
        assert first.name == {"plugin": "channels", "mixer": "dim", "frontend": "in_channels", "head": "dim"}[card.kind]
        assert card.cases
    if card.reference:
        assert callable(import_module(f"visionattn.reference.{card.reference}").naive_of)


def test_says_when_not_to_use_it():
    """A sentence of its own for each mechanism that follows "Not"; what one file has may be alike."""
    said = {}
    for card in CARDS:
        assert re.match(r"[a-z]", card.avoid) and not card.avoid.endswith("."), card.name
        assert len(card.avoid.split()) >= 8, f"{card.name}: {card.avoid}"
        said.setdefault(card.avoid, set()).add(catalog.module_of(card).__name__)
    assert all(len(modules) == 1 for modules in said.values()), "two mechanisms say the same"


def test_lists_are_made_of_the_cards():
    assert visionattn.list_plugins() == [c.name for c in CARDS if c.kind == "plugin" and not c.further_inputs]
    listed = visionattn.list_mixers()
    assert listed == sorted(listed) and {"swin", "twins_local"} <= {*listed} and "twins" not in listed


@pytest.mark.parametrize("room", [plugins, mixers], ids=lambda room: room.__name__)
def test_all_that_is_public_has_a_card(room):
    """`from visionattn.mixers import X` finds a class wherever it is; nobody enters it in a list."""
    with_card = {getattr(card.factory, "func", card.factory).__module__ for card in CARDS if card.factory}
    public = {name: getattr(room, name) for name in room.__all__}
    modules = {
        value.__module__ for value in public.values() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    # What stands in a file with an underscore is a part of several.
    assert not {name for name in modules - with_card if "._" not in name}
    assert public.keys() <= {*dir(room)} and "import_module" not in dir(room)
    with pytest.raises(AttributeError, match=f"module '{room.__name__}' has no attribute 'Nonsense'"):
        room.Nonsense  # noqa: B018
    with pytest.raises(ImportError, match="Nonsense"):
        exec(f"from {room.__name__} import Nonsense")


@pytest.mark.parametrize(("resolve", "word"), [(plugins.resolve_plugin, "plug-in"), (mixers.resolve_mixer, "mixer")])
def test_finds_by_name_class_or_config(resolve, word):
    name = {"plug-in": "cbam", "mixer": "swin"}[word]
    cls = catalog.get({"plug-in": "plugin"}.get(word, word), name).factory
    assert resolve(name) is cls and resolve(cls) is cls
    built = resolve({"type": name, "nonsense": 1})
    assert built.func is cls and built.keywords == {"nonsense": 1}
    with pytest.raises(ValueError, match=f"unknown {word} 'cbamm'; there are: .*{name}"):
        resolve("cbamm")
    with pytest.raises(TypeError, match=f"a {word}'s config needs a 'type'"):
        resolve({"kernel_size": 3})
    for wrong in (3, nn.Identity()):
        with pytest.raises(TypeError, match=f"a {word} is a name, a class or a dict"):
            resolve(wrong)


def test_what_is_no_module_of_its_own_says_so():
    with pytest.raises(ValueError, match="'twins' stands for several mixers that take turns"):
        mixers.resolve_mixer("twins")
    with pytest.raises(ValueError, match=r"'pkcam' needs more than a map \(stage, block\)"):
        plugins.resolve_plugin("pkcam")
    with pytest.raises(ValueError, match="the card of 'x' needs a factory or mixers"):
        Card(name="x", title="x", kind="mixer", factory=None, summary="", paper="")


def test_finds_cards_by_text():
    assert [card.name for card in catalog.find("shifted WINDOW")] == ["swin"]
    assert {card.name for card in catalog.find("1807.06521")} == {"cbam"}
    assert catalog.find("attention", "mixer") and not catalog.find("nothing of this name")
    assert len(catalog.find()) == len(CARDS)


def test_blocks_of_a_host_get_what_they_take():
    context = BlockContext(1, 1, 64, attn_drop=0.1, proj_drop=0.2, num_heads=2, grid=(8, 8))
    swin = catalog.get("mixer", "swin").build_mixers(context, device="meta")["attn"]
    assert (swin.num_heads, swin.shift_size, swin.attn_drop.p, swin.proj_drop.p) == (2, (3, 3), 0.1, 0.2)
    assert catalog.get("mixer", "swin").build_position(context) is None
    assert [*catalog.get("mixer", "boat").build_mixers(context, device="meta")] == ["attn", "content"]
    assert catalog.get("mixer", "pool").build_mixers(context).keys() == {"attn"}
    first = BlockContext(1, 0, 64, num_heads=2, grid=(8, 8))
    kinds = [type(catalog.get("mixer", "davit").build_mixers(c)["attn"]).__name__ for c in (first, context)]
    assert kinds == ["SpatialWindowAttention", "ChannelAttention"]

"""`visionattn zoo`: mechanisms as a table, and a few of them in full."""

from dataclasses import replace

import pytest
import timm

from visionattn import catalog
from visionattn.models.mechanisms import networks_of


def test_lists_every_mechanism(run_cli):
    code, out, _ = run_cli("zoo")
    assert code == 0 and all(f" {card.name} " in out for card in catalog.cards())
    assert "  network " not in out


def test_shows_all_of_what_is_found(run_cli):
    code, out, _ = run_cli("zoo", "parameter-FREE")
    assert code == 0 and "class     visionattn.plugins.SimAM" in out and " cbam " not in out
    assert "code      https://github.com/ZjjConan/SimAM (states no licence)" in out
    assert 'use       visionattn.attach(model, "simam")' in out and "  network   va_resnet50_simam" in out
    code, out, _ = run_cli("zoo", "2104.13840", "--kind", "mixer")
    assert code == 0 and "va_twins_svt_small" in out and "visionattn.mixers.LocallyGroupedAttention" in out
    assert "attach(" not in out


def test_says_what_there_is_if_nothing_is_found(run_cli):
    code, _, error = run_cli("zoo", "cbamm", "--kind", "plugin")
    assert (
        code == 2
        and "no mechanism has 'cbamm' in its name, description or paper; there are: " in error
        and " bam, " in error
    )
    code, _, error = run_cli("zoo", "--kind", "tool")
    assert code == 2 and "there are: none of this kind" in error


def test_up_to_three_are_shown_in_full(run_cli):
    words = [card.name for card in catalog.cards()] + [word for card in catalog.cards() for word in card.title.split()]
    three, four = (next(word for word in words if len(catalog.find(word)) == count) for count in (3, 4))
    assert run_cli("zoo", three)[1].count("\n  place ") == 3
    assert run_cli("zoo", four)[1].count("\n  place ") == 0


@pytest.mark.parametrize("kind", ["plugin", "mixer", "head", "method", "tool"])
def test_kinds_are_told_apart(kind, run_cli):
    found = [*catalog.cards(kind)]
    code, out, _ = run_cli("zoo", "--kind", kind)
    assert code == (0 if found else 2) and all(f" {card.name} " in out for card in found)


def test_attaches_only_what_stands_alone(run_cli):
    assert not catalog.find("acat", "plugin")[0].standalone
    code, out, _ = run_cli("zoo", "acat", "--kind", "plugin")
    assert code == 0 and "class     visionattn.plugins." in out and "attach(" not in out


def test_square_brackets_are_no_markup(run_cli, monkeypatch):
    card = replace(catalog.find("simam")[0], placement="after [b]each[/b] block")
    monkeypatch.setattr(catalog, "find", lambda text, kind: [card])
    assert "place     after [b]each[/b] block\n" in run_cli("zoo", "simam")[1]


def test_every_network_is_of_a_mechanism_or_a_baseline():
    found = networks_of(catalog.cards())
    assert found["ela_t"] == timm.list_models("va_*_ela_t") and len(found["ela_t"]) == 9
    assert {"va_boat_swin_tiny", "va_stm_boat_nano"} <= {*found["boat"]} and "va_boat_swin_tiny" not in found["swin"]
    assert "va_twins_svt_small" in found["twins"] and "va_twins_svt_small" in found["twins_local"]
    others = {*timm.list_models("va_*")} - {name for names in found.values() for name in names}
    assert others == {"va_resnet10n", "va_resnet10n_eca", "va_resnet10n_se", "va_resnet18n"}


def test_names_what_timm_has_itself(run_cli):
    """MambaOut is a baseline: timm's networks, not a second implementation."""
    code, out, _ = run_cli("zoo", "mambaout", "--kind", "baseline")
    assert code == 0 and "timm's own networks" in out and "  network   mambaout_femto" in out
    assert "class " not in out and not timm.list_models("va_*mambaout*")
    assert networks_of(catalog.cards("baseline")) == {"mambaout": timm.list_models("mambaout_*")}

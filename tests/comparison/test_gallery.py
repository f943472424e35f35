"""Maps of mechanisms on a photograph: what they are, and the way from the training to the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from visionattn.catalog import cards, get
from visionattn.comparison import gallery
from visionattn.comparison.diagnostics.recipe import Effort
from visionattn.comparison.diagnostics.training import to_inputs
from visionattn.explain import gates
from visionattn.testing.pictures import PLACE, photograph

TINY = replace(gallery.RECIPE, train=26, test=26, batch=4, efforts={"cnn": {"": Effort(2, 1)}})


def untrained(card):
    torch.manual_seed(0)
    model, _ = gallery.build(card, TINY)
    return model.eval(), to_inputs(photograph(96)[None], "cpu")


def test_gates_are_what_the_map_is_multiplied_by():
    card = get("plugin", "cbam")
    model, x = untrained(card)
    maps = gallery.look(card, model, x)
    name, (what, found) = next(iter(maps.items()))
    seen = []
    module = model.get_submodule(name)  # what comes out of it is changed in place later
    handle = module.register_forward_hook(lambda module, args, out: seen.append((args[0].clone(), out.clone())))
    with torch.no_grad():
        model(x)
    handle.remove()
    ((before, after),) = seen
    used = before.abs() > 1e-3
    share = (after / before).where(used, 0).sum(1) / used.sum(1)
    alike = used.all(1)[0]  # there the mean over all channels is known
    assert what == "gate" and alike.any()
    torch.testing.assert_close(found[alike], share[0][alike], rtol=1e-4, atol=1e-5)


def test_weights_stay_in_the_window_and_sum_to_one():
    card = get("mixer", "swin")
    model, x = untrained(card)
    what, found = next(iter(gallery.look(card, model, x).values()))
    assert what == "weights" and found.shape == (24, 24)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    rows, columns = (found.sum(axis) > 0 for axis in (1, 0))
    assert rows.sum() == columns.sum() == 7 and rows[int(PLACE[0] * 24)] and columns[int(PLACE[1] * 24)]


def test_influence_is_the_derivative():
    """Half of a token is the mean of all, so the derivative is known."""
    card = get("mixer", "context_broadcast")
    model, x = untrained(card)
    what, found = next(iter(gallery.look(card, model, x).values()))
    width, count = TINY.pyramid["dims"][0], 24 * 24
    expected = torch.full((24, 24), width**0.5 * 0.5 / count)
    expected[int(PLACE[0] * 24), int(PLACE[1] * 24)] += width**0.5 * 0.5
    assert what == "influence"
    torch.testing.assert_close(found, expected)


def test_gates_of_channels_are_shown_by_what_they_change():
    """PKCAM's blocks get the history of their network, also when they are asked for their gates."""
    card = get("plugin", "pkcam")
    model, x = untrained(card)
    maps = gallery.look(card, model, x)
    assert len(maps) == 8 and {what for what, _ in maps.values()} == {"change"}
    (factor,) = gates(model, x)["layer1.1.se"].values()
    assert factor.shape[2:] == (1, 1)
    # Factors lie between 0 and 1, so a block takes away a share.
    assert all(0 <= float(found.min()) <= float(found.max()) <= 1 for _, found in maps.values())


def test_what_needs_more_than_a_photograph_has_no_network():
    named = {card.name for card in cards() if gallery.build(card, TINY) is None}
    assert named == {"mambaout", *(c.name for c in cards() if c.further_inputs and c.name != "pkcam")}


def test_pieces_have_the_label_of_their_photograph():
    train, test = gallery.pieces("train", 26, 16), gallery.pieces("test", 26, 16)
    assert (
        [*train.labels[:3]] == [0, 1, 2] and set(train.labels) == set(range(13)) and train.images.shape[1:3] == (16, 16)
    )
    assert not any((piece == other).all() for piece in train.images for other in test.images)


def test_goes_the_whole_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "RECIPE", TINY)
    path = tmp_path / "gallery.npz"
    gallery.main(["--steps", "2", "--out", str(path), "lam", "sentence"])
    assert "sentence: needs more than a photograph" in capsys.readouterr().out
    gallery.main(["--steps", "2", "--out", str(path), "pma"])  # the file keeps what it has
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        assert [*about["mechanisms"]] == ["head/pma", "plugin/lam"] and about["steps"] == 2
        assert about["mechanisms"]["plugin/lam"]["maps"].keys() == {
            "layer1.0.drop_path.plugin",
            "layer4.0.drop_path.plugin",
        }
        assert file["head/pma/pool"].sum() == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="made by another recipe"):
        gallery.main(["--steps", "3", "--out", str(path), "pma"])
    with pytest.raises(SystemExit):
        gallery.main(["nonsense"])
    assert "unknown mechanisms: nonsense" in capsys.readouterr().err

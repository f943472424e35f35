"""The demonstration of replaced attention: shares of pairs, exactness where all are computed, and what is written."""

import pytest
import torch

from visionattn.comparison.budgets import BUDGETS, TUNED, accuracy, main, replaced, share_of_pairs, train
from visionattn.models.families.va_vit import vit


@pytest.fixture
def network():
    torch.manual_seed(0)
    return vit("softmax", 32, 2, 2, patch_size=2, img_size=28, in_chans=1, num_classes=10).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(100, 1, 28, 28, generator=generator), torch.randint(10, (100,), generator=generator)


@pytest.mark.parametrize("mixer", BUDGETS)
def test_budgets_grow_to_all_pairs_where_nothing_changes(mixer, network, data):
    images = data[0][:2]
    models = [replaced(network, mixer, options) for options in BUDGETS[mixer]]
    shares = [share_of_pairs(model, images) for model in models]
    assert shares == sorted(shares) and shares[0] < 6 and shares[-1] == pytest.approx(100)
    with torch.no_grad():
        expected, found = network(images), [model(images) for model in models]
    assert torch.allclose(found[-1], expected, atol=1e-5) and not torch.allclose(found[0], expected, atol=1e-6)


def test_windows_are_the_share_that_they_cover(network, data):
    model = replaced(network, "swin", {"window_size": (7, 14), "shift_size": 0, "rel_pos": False})
    assert share_of_pairs(model, data[0][:1]) == pytest.approx(50)


@pytest.mark.parametrize("mixer", [name for name in TUNED if name != "softmax"])
def test_training_goes_through_what_was_put_in(mixer, network, data):
    model = replaced(network, mixer, TUNED[mixer])
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, data, 1, 1e-3, torch.Generator())
    same = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert not same, f"nothing moved {same}"
    if mixer == "sparsifiner":  # only its predictor's phase is over
        assert not any(block.attn.fn.reconstruct for block in model.blocks)
    assert 0 <= accuracy(model, data) <= 100


def test_writes_tables_and_a_picture(tmp_path, monkeypatch, capsys, data):
    monkeypatch.setattr(
        "visionattn.comparison.budgets.pictures", lambda split, count: (data[0][:count], data[1][:count])
    )
    sizes = ("--images", "50", "--epochs", "1", "--tests", "100")
    main(["--seeds", "0", "1", *sizes, "--out", str(tmp_path / "budgets.md")])
    text = (tmp_path / "budgets.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "budgets.png").stat().st_size > 1000
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 1 + sum(map(len, BUDGETS.values())) + len(TUNED)
    full, tuned = rows[1], next(row for row in rows if row.startswith("| softmax attention, as it was |  |"))
    assert full.split(" | ")[2] == tuned.split(" | ")[2]  # before it is trained on, it is the one above
    main(["--seeds", "0", "1", *sizes, "--out", str(tmp_path / "budgets.md")])  # all runs were kept
    assert (tmp_path / "budgets.md").read_text() == text

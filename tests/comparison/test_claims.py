"""Claims tried on pictures: what the tasks ask for, that null models lack it, verdicts, and what is written."""

import pytest
import torch

from visionattn.comparison import claim_tasks as tasks
from visionattn.comparison.claim_networks import Recipe, accuracy, fit, network
from visionattn.comparison.claims import CLAIMS, main, verdict
from visionattn.comparison.stems import KnownTiles, conv_stem


def test_splits_share_no_digit():
    train, test = tasks.digits("train"), tasks.digits("test")
    assert (len(train[0]), len(test[0])) == (1438, 359) and train[0].shape[1:] == (1, 8, 8) and train[0].min() >= 0
    assert train[0].max() <= 3


def test_neighbours_are_told_by_order_alone():
    images, answers = tasks.ordered_neighbours("test", 60, 0)
    assert images.shape == (60, 1, 32, 32) and answers.sum() == 30
    digits, labels = tasks.digits("test")
    known = {image.numpy().tobytes(): int(label) for image, label in zip(digits, labels, strict=True)}
    for image, answer in zip(images, answers, strict=True):
        tiles = image.view(4, 8, 4, 8).permute(0, 2, 1, 3).reshape(16, 1, 8, 8)
        classes = torch.tensor([known[tile.contiguous().numpy().tobytes()] for tile in tiles]).view(4, 4)
        assert (classes == 3).sum() == 1 and (classes == 5).sum() == 1
        beside = ((classes[:, :-1] == 3) & (classes[:, 1:] == 5)).any()
        assert bool(answer) == bool(beside)


def test_digits_stand_where_it_is_said():
    images, _, there = tasks.cluttered_digits("train", 5, 0)
    assert images.shape == (5, 1, 32, 32) and (there.flatten(1).sum(1) == 16).all()
    again = tasks.cluttered_digits("train", 5, 0)
    assert all(torch.equal(a, b) for a, b in zip((images, there), (again[0], again[2]), strict=True))
    canvas, _ = tasks.digits_on_canvas("test", 16, 3, 0)
    assert canvas.shape == (3, 1, 16, 16) and (canvas.flatten(1).amax(1) > 0.8).all()
    pairs, same, there = tasks.digit_pairs("test", 4, 0)
    assert pairs.shape == (4, 2, 12, 12) and same.tolist() == [0, 1, 0, 1]
    assert there.shape == (4, 2, 6, 6) and (there.sum((2, 3)) == 16).all()


def test_symbols_are_asked_for_by_place_and_by_key():
    shown, answers = tasks.copied_symbols(5, 3, 0)
    assert torch.equal(answers[:, 2:], shown.argmax(1)[:, :-2]) and (answers[:, :2] == -100).all()
    shown, answers = tasks.recalled_symbols(4, 0, pairs=6)
    keys, values = shown[:, :6].argmax(1), shown[:, 6:]
    assert (values[:, :, 1] == 0).all() and (answers[:, 0] == -100).all()
    for picture in range(4):
        told = dict(zip(keys[picture, 0].tolist(), values[picture, :, 0].argmax(0).tolist(), strict=True))
        assert [told[key] for key in keys[picture, 1].tolist()] == answers[picture, 1].tolist()


def test_accuracy_counts_what_is_asked_for():
    task = tasks.copied_symbols(4, 8, 0)
    perfect = torch.nn.Conv2d(8, 8, (3, 1), padding=(2, 0), bias=False)
    with torch.no_grad():
        perfect.weight.zero_()
        perfect.weight[range(8), range(8), 0] = 1
    above = torch.nn.Sequential(perfect, Cut())
    assert accuracy(above, task) == 100
    assert accuracy(torch.nn.Sequential(above, Roll()), task) < 60


class Cut(torch.nn.Module):
    def forward(self, x):
        return x[:, :, :-2]


class Roll(torch.nn.Module):
    def forward(self, x):
        return x.roll(1, 1)


def test_networks_learn_and_answer_for_each_token():
    torch.manual_seed(0)
    task = tasks.digits("train")
    model = network([("softmax", {})] * 2)
    before = accuracy(model, task)
    assert accuracy(fit(model, task, Recipe(150, 8e-3), 0), task) > before + 25
    dense = network([("mvpa", {"grid_size": 4})], dense=True, in_chans=8, num_classes=8, patch_size=1, img_size=4)
    assert dense(torch.zeros(2, 8, 4, 6)).shape == (2, 8, 4, 6)


@pytest.mark.parametrize(
    ("ours", "null", "better", "said"),
    [
        ([5, 6, 7], [2, 3, 4.9], "higher", "won"),
        ([5, 6], [2, 3], "higher", "ahead, too few seeds to tell"),
        ([1], [4], "higher", "behind, too few seeds to tell"),
        ([5, 6, 7], [2, 3, 5], "higher", "no difference beyond the seeds"),
        ([1, 2, 3], [4, 5, 6], "higher", "lost"),
        ([1, 2, 3], [4, 5, 6], "lower", "won"),
        ([7, 8, 9], [4, 5, 6], "lower", "lost"),
        ([88, 90, 92], [91, 92, 93], "near", "held"),
        ([88, 90, 91], [91, 92, 93], "near", "not held"),
    ],
)
def test_verdicts(ours, null, better, said):
    assert verdict(ours, null, better) == said


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_runs_and_compares_values_that_it_has(name, monkeypatch):
    full = tasks.digits_on_canvas
    monkeypatch.setattr(tasks, "digits_on_canvas", lambda split, side, count, seed: full(split, side, 8, seed))
    values = CLAIMS[name].run(0, Recipe(2, batch=4))
    assert all(0 <= value <= 100 or "parameters" in key for key, value in values.items())
    for contest in CLAIMS[name].contests:
        assert {contest.ours, contest.null} <= values.keys() and contest.better in ("higher", "lower", "near")


def test_writes_tables(tmp_path, capsys):
    arguments = ["--seeds", "0", "1", "--claims", "titans", "--steps", "2", "--out", str(tmp_path / "claims.md")]
    main(arguments)
    text = (tmp_path / "claims.md").read_text()
    assert text in capsys.readouterr().out and "--claims titans --steps 2" in text
    assert "| titans | titans | " in text and "| softmax | " in text
    main(arguments)
    assert (tmp_path / "claims.md").read_text() == text


def test_stems_halve_as_often_as_asked():
    x = torch.randn(2, 13, 16, 1)
    assert conv_stem(1, 8, patch_size=2)(x).shape == (2, 7, 8, 8) and conv_stem(1, 8)(x).shape == (2, 4, 4, 8)
    for size in (0, 1, 6):
        with pytest.raises(ValueError, match=f"patch_size must be a power of two above 1, got {size}"):
            conv_stem(1, 8, patch_size=size)


def test_known_tiles_see_themselves_only_and_learn_no_more():
    encoder = conv_stem(1, 4)
    stem = KnownTiles(1, 6, encoder=encoder, side=8).train()
    x = torch.randn(2, 16, 24, 1)
    other = x.clone()
    other[:, :8, 8:16] += 1
    changed = (stem(x) != stem(other)).any(-1)[0]
    assert changed.tolist() == [[False, True, False], [False, False, False]]
    assert [name for name, value in stem.named_parameters() if value.requires_grad] == ["proj.weight", "proj.bias"]
    tile = encoder.eval()(x[:1, 8:, :8]).flatten()
    torch.testing.assert_close(stem(x)[0, 1, 0], stem.proj(tile))

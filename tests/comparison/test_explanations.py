"""The evaluation of explanations: scenes hold what is asked for, null rows are at chance, and what is written."""

import pytest
import torch
from torch import nn

from visionattn.comparison.explanations import METHODS, SCORES, evaluate, load, main, networks, scenes


def test_scenes_show_the_answer_in_its_quarter():
    model = load("va_stm_pool_nano.digits")
    (x, answers, boxes, ink), share = scenes(model, 0, 12)
    assert 0.5 < share <= 1 and len(x) == round(12 * share) and x.shape[1:] == (3, 64, 64)
    assert (boxes.sum((1, 2)) == 32 * 32).all() and (ink <= boxes).all() and (ink.sum((1, 2)) > 50).all()
    with torch.no_grad():
        assert torch.equal(model(x).argmax(1), answers)
        alone = torch.stack([x[i][:, box > 0].view(3, 32, 32) for i, box in enumerate(boxes)])
        assert (model(alone).argmax(1) == answers).float().mean() > 0.9
    (large, _, boxes, ink), _ = scenes(model, 0, 4, side=3)
    assert large.shape[2:] == (96, 96) and (boxes.sum((1, 2)) == 32 * 32).all() and (ink <= boxes).all()
    assert torch.equal(scenes(model, 0, 12)[0][0], x) and not torch.equal(scenes(model, 1, 12)[0][0][:5], x[:5])


class Corner(nn.Module):
    """Answers by the upper left quarter alone."""

    def forward(self, x):
        quarter = x[:, :, : x.shape[2] // 2, : x.shape[3] // 2].mean((1, 2, 3))
        return torch.stack((quarter, -quarter), 1)


def test_scores_of_maps(monkeypatch):
    x = torch.rand(6, 3, 32, 32)
    boxes = torch.zeros(6, 32, 32)
    boxes[:, :16, :16] = 1
    x = x + 2 * boxes[:, None]
    right = boxes[:, ::4, ::4]
    monkeypatch.setitem(METHODS, "right", lambda model, x, target: right)
    monkeypatch.setitem(METHODS, "wrong", lambda model, x, target: 1 - right)
    found = evaluate(
        Corner(), (x, torch.zeros(6, dtype=torch.long), boxes, boxes), ["right", "wrong", "random"], steps=4
    )
    assert found["right"]["pointing game"] == 1 and found["wrong"]["pointing game"] == 0
    assert found["right"]["mass in box"] > 0.9 > 0.1 > found["wrong"]["mass in box"]
    assert found["random"]["mass in box"] == pytest.approx(0.25, abs=0.06)
    assert found["right"]["insertion"] > found["wrong"]["insertion"]
    assert found["right"]["deletion"] < found["wrong"]["deletion"]


def test_networks_are_the_packaged_ones_that_know_digits():
    names = networks()
    assert "va_stm_swin_nano.digits" in names and len(names) >= 11 and all(name.endswith(".digits") for name in names)


def test_writes_the_tables(tmp_path, capsys, monkeypatch):
    out = tmp_path / "explanations.md"
    sizes = ("--scenes", "4", "--steps", "2", "--seeds", "0", "1")
    chosen = ("--networks", "va_stm_swin_nano.digits", "va_stm_pool_nano.digits", "va_resnet10n_cbam.digits")
    methods = ("--methods", "random", "centre", "relevance", "last spatial gate", "lrp")
    main([*sizes, *chosen, *methods, "--sides", "2", "--out", str(out)])
    text = out.read_text()
    assert text in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["method", "networks", *SCORES]
    counts = {row[0]: row[1] for row in rows[1:6]}
    assert counts == {"random": "3", "centre": "3", "relevance": "1", "last spatial gate": "1", "lrp": "2"}
    assert len(rows) == 1 + 5 + 1 + 3 + 3 + 4
    # What is there is not computed again; a new method is, and the others stay.
    monkeypatch.setattr("visionattn.comparison.explanations.load", None)
    main([*sizes, *chosen, *methods, "--sides", "2", "--out", str(out)])
    assert out.read_text() == text
    monkeypatch.undo()
    main([*sizes, "--networks", chosen[1], "--methods", "rollout", "--sides", "2", "--out", str(out)])
    lines = out.read_text().splitlines()
    assert {line for line in text.splitlines() if line.startswith("| random")} <= {*lines}
    assert sum(line.startswith("| rollout | 1 |") for line in lines) == 1

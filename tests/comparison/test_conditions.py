"""The comparison of right and shuffled conditions: the scenes, a short run, the table."""

import numpy as np
import pytest
import torch

from visionattn.comparison import conditions
from visionattn.data.synthetic.asked_digits import AskedDigits, embed


def test_scenes_are_a_function_of_their_number():
    first, again = (AskedDigits("train", "sentence", length=4) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["data_samples"]["condition"], other["data_samples"]["condition"])
    other = AskedDigits("train", "sentence", length=1, seed=1)
    assert not torch.equal(first[0]["inputs"], other[0]["inputs"])
    sample = AskedDigits("test", "saliency", size=48, length=1)[0]
    mask = sample["data_samples"]["condition"]
    assert sample["inputs"].shape == (3, 48, 48) and mask.shape == (1, 48, 48)
    assert set(mask.unique().tolist()) == {0.0, 1.0} and 5 < mask.sum() < 48 * 48 / 4


def test_sentences_of_one_colour_are_alike():
    red, again, blue = map(embed, ("name the one that is red", "what is the red digit", "name the one that is blue"))
    assert red.shape == (32,) and np.linalg.norm(red) == pytest.approx(32**0.5, rel=1e-5)
    assert np.array_equal(red, embed("Name the one that is RED")) and not np.allclose(red, blue)
    assert red @ again > embed("which blue figure do you see") @ again


@pytest.mark.parametrize("asked", conditions.GATES)
def test_a_short_run(asked, monkeypatch):
    """No accuracy to speak of, but what is promised of a run: its own numbers each time, the same for the same seed."""
    build = conditions.AskedDigits
    monkeypatch.setattr(conditions, "AskedDigits", lambda *args, length=64, **kw: build(*args, length=length, **kw))
    first, again = (conditions.run(asked, 0, epochs=1, scenes=64) for _ in range(2))
    assert {key: first[key] for key in ("right", "shuffled")} == {key: again[key] for key in ("right", "shuffled")}
    assert 0 <= first["right"] <= 100 and first["seconds"] > 0


def test_the_condition_of_another_picture_is_another():
    class ByCondition(torch.nn.Module):
        def data_preprocessor(self, batch):
            return batch

        def forward(self, inputs, samples, mode):
            return samples["condition"]

    samples = [{"inputs": torch.zeros(1), "data_samples": {"label": k, "condition": torch.eye(3)[k]}} for k in range(3)]
    assert conditions.evaluate(ByCondition(), samples) == 100
    assert conditions.evaluate(ByCondition(), samples, shuffled=True) == 0


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ((60.0, 61.0, 62.0), "the gate is used"),
        ((29.0, 61.0, 62.0), "no difference beyond the seeds"),
        ((60.0, 61.0), "too few seeds to tell"),
    ],
)
def test_the_table(tmp_path, right, verdict):
    runs = [{"right": value, "shuffled": 30.0, "epochs": 24, "scenes": 10_000, "seconds": 2.0} for value in right]
    text = conditions.write({"sentence": runs}, tmp_path / "conditions.md", "the command")
    assert (tmp_path / "conditions.md").read_text() == text and "    the command\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| `sentence`"))
    assert (
        "| 24 x 10,000 |" in row
        and row.endswith(f"| {verdict} |")
        and f"({', '.join(f'{value:.1f}' for value in right)})" in row
    )

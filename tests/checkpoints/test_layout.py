"""The way back from our keys: what it refuses, and what it counts with."""

import pytest
import torch

from visionattn.checkpoints import layout as module
from visionattn.checkpoints.layout import Layout, trace


def test_weights_must_have_the_keys_of_the_layout():
    traced = trace(Layout({"a": (2,), "b": (3,)}), lambda x: {"ours": x["a"], "other": x["b"]})
    whole = {"ours": torch.ones(2), "other": torch.zeros(3)}
    assert traced.back(whole)["b"].equal(whole["other"])
    for wrong, key in (({"ours": torch.ones(2)}, "other"), ({**whole, "more": torch.ones(1)}, "more")):
        with pytest.raises(ValueError, match=f"the weights do not fit the format: {key} in one of them only"):
            traced.back(wrong)


@pytest.mark.parametrize(("count", "dtype"), [(2**31 - 1, torch.int32), (2**31, torch.int64)])
def test_numbers_have_room(count, dtype, monkeypatch):
    """A layout of so many weights is numbered without overflow; the numbers themselves would take 8 GB here."""
    asked = []

    def few(start, end, dtype):
        asked.append((start, end, dtype))
        return torch.zeros((), dtype=dtype).expand(end - start)

    monkeypatch.setattr(module.torch, "arange", few)
    trace(Layout({"a": (count,)}), lambda x: {})
    assert asked == [(0, count, dtype)]

"""Which networks a file of weights may be of: by its name, and by its keys."""

import pytest
import torch

from visionattn.checkpoints import recognition
from visionattn.checkpoints.recognition import candidates
from visionattn.utils.resources import read_manifest


def test_a_known_file_is_first_taken_for_what_it_is():
    entries = [entry for entry in read_manifest().values() if entry["task"] == "classification"]
    assert len(entries) > 3
    for entry in entries:
        named = [e for e in entries if e["file"] == entry["file"]]
        found = candidates({}, entry["file"])
        assert [next(found) for _ in named] == [(e["model"], e.get("arguments", {})) for e in named]


def test_a_file_of_another_task_or_an_unknown_one_is_of_no_classifier():
    others = [entry["file"] for entry in read_manifest().values() if entry["task"] != "classification"]
    assert others
    for file in (others[0], "unknown.pth"):
        assert not [*candidates({}, file)]


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        # Of one family by its first word, the second tells; numbers are sizes, but for versions.
        (["va_twins_svt_small", "va_twins_svt_base", "va_twins_pcpvt_small"], [0, 2]),
        (["va_boat_swin_tiny", "va_boat_swin_small"], [0]),
        (["va_davit_tiny", "va_davit", "va_davit_small"], [0, 1, 2]),
        (["va_resnet18_bam", "va_resnet50_bam", "va_mobilenetv2_100_bam", "va_mobilenetv3_bam"], [0, 2, 3]),
        (["va_resnet18_bam", "va_resnet50_bam", "va_mobilenetv2_bam"], [0, 2]),
    ],
)
def test_one_network_stands_for_those_of_other_sizes(names, hosts):
    assert recognition._hosts(names) == [names[place] for place in hosts]


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError])
def test_what_a_converter_cannot_read_is_not_its_network(error, monkeypatch):
    def fails(state_dict, network):
        raise error("other keys")

    name = "va_resnet10n_cbam"
    monkeypatch.setitem(recognition.CONVERTERS, name, fails)
    assert recognition._share({"a": torch.zeros(1)}, name) == 0


def test_share_of_known_keys(monkeypatch):
    name = "va_resnet10n_cbam"
    monkeypatch.setitem(recognition.CONVERTERS, name, lambda state_dict, network: state_dict)
    weight = torch.zeros(1)
    assert recognition._share({}, name) == 0
    assert recognition._share({"fc.weight": weight, "fc.bias": weight}, name) == 1
    # Numbers aside: a block more is the same family.
    assert recognition._share({"layer1.99.conv1.weight": weight, "a": weight, "b": weight, "c": weight}, name) == 0.25

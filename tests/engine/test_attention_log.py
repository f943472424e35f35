"""A grid of maps at every validation: in TensorBoard and as files, without a trace in the training."""

import cv2
import pytest
import torch
from engine.small import said, small_runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from visionattn.engine import AttentionLogHook
from visionattn.utils.files import read_checkpoint

HOOK = {"type": "AttentionLogHook", "count": 2, "columns": 3}
SWIN = {"model_name": "va_stm_swin_nano", "num_classes": 10, "pretrained": False, "_delete_": True}


def pictures(folder):
    return sorted(folder.rglob("attention_*.png"))


def weights(folder):
    return read_checkpoint(folder / "epoch_2.pth")["state_dict"]


def test_shows_attention_and_changes_nothing(tiny_config, tmp_path):
    for name, hooks in (("plain", {}), ("shown", {"default_hooks__attention": HOOK})):
        small_runner(tiny_config, tmp_path / name, model__backbone=SWIN, **hooks).train()
    first, second = pictures(tmp_path / "shown")
    assert [path.stem for path in (first, second)] == ["attention_1", "attention_2"]
    images = [cv2.imread(str(path)) for path in (first, second)]
    width = images[0].shape[1] / 4  # the input and three layers
    assert images[0].shape == images[1].shape and width > 112 and images[0].shape[0] > 2 * 112
    assert (images[0] != images[1]).any()  # it has learnt
    assert not pictures(tmp_path / "plain")
    plain, shown = (weights(tmp_path / name) for name in ("plain", "shown"))
    assert plain.keys() == shown.keys() and all(torch.equal(plain[key], shown[key]) for key in plain)
    events = EventAccumulator(str(next((tmp_path / "shown").rglob("events.out.tfevents.*")).parent))
    events.Reload()
    assert events.Tags()["images"] == ["attention"]
    assert [event.step for event in events.Images("attention")] == [1, 2]


def test_shows_gates_of_a_cnn_at_every_second_validation(tiny_config, tmp_path):
    hook = {**HOOK, "interval": 2}
    small_runner(tiny_config, tmp_path, default_hooks__attention=hook, train_cfg__max_epochs=3).train()
    assert [path.stem for path in pictures(tmp_path)] == ["attention_1", "attention_3"]


def test_says_once_that_there_is_nothing_to_show(tiny_config, tmp_path, capsys):
    backbone = {"model_name": "va_resnet10n", "num_classes": 10, "pretrained": False, "_delete_": True}
    small_runner(tiny_config, tmp_path, default_hooks__attention=HOOK, model__backbone=backbone).train()
    assert not pictures(tmp_path)
    assert said(capsys).count("no maps of attention are shown: ") == 1


@pytest.mark.parametrize("name", ["interval", "count", "columns"])
def test_wrong_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AttentionLogHook(**{name: 0})

"""Settings that do not go together end a run before its first step, and the message names them."""

import pytest
import torch
from engine.small import small_runner

WHOLE = {"train_dataloader__num_batch_per_epoch": None, "train_dataloader__dataset__split": "test"}  # 359 samples


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {**WHOLE, "train_dataloader__batch_size": 400, "train_dataloader__drop_last": True},
            r"batch_size=400 leaves no batch to train on: 1 process\(es\) share 359 samples, and drop_last=True",
        ),
        (
            {
                **WHOLE,
                "train_dataloader__batch_size": 179,  # 2 * 179 + 1
                "model__backbone__model_name": "va_resnet10n_bam",
                "model__mixup": None,
            },
            r"one sample, as batch_size=179 leaves the last of an epoch \(359 samples\).*batch_size or drop_last=True",
        ),
        ({**WHOLE, "train_dataloader__batch_size": 179}, "mixup needs batches of even size.*drop_last=True"),
        ({"model__backbone__num_classes": 12}, r"evaluator.scores.top1.num_classes is 10, but the model's .* is 12"),
        ({"model__backbone__num_classes": 9}, "has 10 classes, but the model's num_classes is only 9"),
        ({"default_hooks__checkpoint__save_best": "top5"}, "'top5' .* is none of the metrics: top1, confusion"),
        ({"default_hooks__checkpoint__save_best": "confusion"}, r"set default_hooks\.checkpoint\.rule to"),
        ({"default_hooks__checkpoint__by_epoch": False}, r"checkpoint.by_epoch is False, .* counts epochs"),
    ],
)
def test_refused_at_the_start(tiny_config, tmp_path, overrides, message):
    runner = small_runner(tiny_config, tmp_path, **overrides)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert not list(tmp_path.glob("*.pth")) and not list(tmp_path.glob("*/vis_data/scalars.json"))


def test_a_last_batch_of_one_that_can_be_trained_on(tiny_config, tmp_path):
    """Nothing normalizes over single values here, and the trial leaves no trace."""
    runner = small_runner(tiny_config, tmp_path, **WHOLE, train_dataloader__batch_size=179, model__mixup=None)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.build_train_loop(runner.cfg.train_cfg)
    assert all(torch.equal(value, before[key]) for key, value in runner.model.state_dict().items())


def test_a_head_wider_than_the_data_set(tiny_config, tmp_path):
    """Allowed where the metrics know of it; classes without a name go by their number."""
    scores = {
        "_delete_": True,
        "top1": {"type": "MulticlassAccuracy", "num_classes": 12, "average": "micro"},
        "recall": {"type": "MulticlassRecall", "num_classes": 12, "average": None},
    }
    runner = small_runner(
        tiny_config, tmp_path, model__backbone__num_classes=12, val_evaluator__scores=scores, train_cfg__max_epochs=2
    )
    runner.train()
    assert {"val/recall/0", "val/recall/9", "val/recall/11"} <= runner.message_hub.log_scalars.keys()

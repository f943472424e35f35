"""Resuming with changed settings: applied as if they had always held, or refused in one line, never ignored."""

import pytest
import torch
from engine.small import said, small_runner

from visionattn.engine import read_scalars
from visionattn.utils.files import read_checkpoint


@pytest.fixture(scope="module")
def begun(tiny_config, tmp_path_factory):
    """The folder of a run of two epochs."""
    work_dir = tmp_path_factory.mktemp("begun") / "run"
    small_runner(tiny_config, work_dir).train()
    return work_dir


@pytest.fixture
def resume(begun, tiny_config, tmp_path):
    """Resumes that run elsewhere, by default from its first epoch."""

    def run(epoch=1, **overrides):
        runner = small_runner(tiny_config, tmp_path / "run", resume=str(begun / f"epoch_{epoch}.pth"), **overrides)
        runner.train()
        return runner

    return run


def rates(runner):
    return [record["lr"] for record in read_scalars(runner.work_dir)[0]]


def test_nothing_changed_says_nothing(resume, begun, capsys):
    runner = resume()
    assert "changed" not in said(capsys)
    a, b = (read_checkpoint(f"{folder}/epoch_2.pth") for folder in (begun, runner.work_dir))
    assert all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())


def test_recomputed_schedules_are_those_of_the_run(resume, begun, tiny_config, capsys):
    """A change without effect on the training makes schedules be computed anew: to the same bits."""
    runner = resume(optim_wrapper__accumulative_counts=1)
    assert "optim_wrapper.accumulative_counts None -> 1" in said(capsys)
    a, b = (read_checkpoint(f"{folder}/epoch_2.pth") for folder in (begun, runner.work_dir))
    assert all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())
    assert a["param_schedulers"] == b["param_schedulers"]


def test_another_learning_rate_is_applied(resume, begun, capsys):
    base = small_rates(begun)
    runner = resume(optim_wrapper__optimizer__lr=4e-5)
    assert "Resuming with changed settings: optim_wrapper.optimizer.lr 0.004 -> 4e-05" in said(capsys)
    assert rates(runner) == pytest.approx([rate / 100 for rate in base[3:]])
    assert all(group["initial_lr"] == 4e-5 for group in runner.optim_wrapper.optimizer.param_groups)


def small_rates(folder):
    return [record["lr"] for record in read_scalars(folder)[0]]


def test_other_hyperparameters_are_applied(resume):
    runner = resume(optim_wrapper__optimizer__betas=(0.8, 0.9), optim_wrapper__clip_grad={"max_norm": 1.0})
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in runner.optim_wrapper.optimizer.param_groups)
    assert runner.optim_wrapper.clip_grad_kwargs == {"max_norm": 1.0}


def test_more_epochs_stretch_the_schedule(resume, tiny_config, tmp_path):
    """As if it had been planned so from the start; the checkpoint's own schedule has ended."""
    runner = resume(epoch=2, train_cfg__max_epochs=4)
    planned = small_runner(tiny_config, tmp_path / "planned", train_cfg__max_epochs=4)
    planned.train()
    assert rates(runner) == pytest.approx(rates(planned)[6:]) and min(rates(runner)) > 0


def test_another_schedule_is_applied(resume):
    runner = resume(param_scheduler=[{"type": "ConstantLR", "factor": 0.5, "by_epoch": True, "end": 99}])
    assert rates(runner) == [0.002] * 3


def test_another_batch_size_keeps_epochs_and_schedules(resume, tiny_config, tmp_path, capsys):
    """Half as many steps an epoch: the second epoch is still the second, trained at the rates of its share."""
    settings = {"train_dataloader__batch_size": 8, "train_dataloader__num_batch_per_epoch": 6}
    runner = resume(**settings)
    assert "batches an epoch 3 -> 6, train_dataloader.batch_size 16 -> 8" in said(capsys)
    assert (runner.epoch, runner.iter, runner.max_iters) == (2, 12, 12)
    planned = small_runner(tiny_config, tmp_path / "planned", **settings)
    planned.train()
    assert rates(runner) == pytest.approx(rates(planned)[6:])
    assert [record["step"] for record in read_scalars(runner.work_dir)[0]] == [*range(7, 13)]


def test_number_of_processes_is_among_the_settings(begun):
    settings = read_checkpoint(begun / "epoch_2.pth")["meta"]["settings"]
    assert settings["processes"] == 1 and settings["samples"] == 48 and settings["batches an epoch"] == 3


ITERATIONS = {
    "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 4, "val_interval": 2},
    "default_hooks__checkpoint": {"type": "AtomicCheckpointHook", "by_epoch": False, "interval": 2},
    "param_scheduler": [],
    "custom_hooks": [],
}


def test_iterations_need_the_same_number_of_samples(tiny_config, tmp_path):
    small_runner(tiny_config, tmp_path, **ITERATIONS).train()
    with pytest.raises(ValueError, match=r"processes x batch_size was 16 of 48, and is 8 of 24"):
        small_runner(tiny_config, tmp_path, True, **ITERATIONS, train_dataloader__batch_size=8).train()
    longer = ITERATIONS | {"train_cfg": {**ITERATIONS["train_cfg"], "max_iters": 6}}
    runner = small_runner(tiny_config, tmp_path, True, **longer)
    runner.train()
    assert runner.iter == 6
    with pytest.raises(ValueError, match=r"trained for 6 iters, this run's train_cfg.max_iters is 4"):
        small_runner(tiny_config, tmp_path, True, **ITERATIONS).train()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"optim_wrapper__optimizer__type": "SGD"}, r"trained with AdamW, this run \(.*optimizer\) with SGD"),
        ({"optim_wrapper__paramwise_cfg": {"layer_decay": 0.5}}, "groups its parameters differently"),
        ({"randomness__seed": 7}, "its randomness.seed is 0, this run's 7"),
        ({"custom_hooks": []}, "holds averaged weights, but this run has no EMAHook"),
        ({"train_cfg__max_epochs": 1, "param_scheduler": []}, "for 2 epochs, this run's train_cfg.max_epochs is 1"),
        (ITERATIONS, "trained by EpochBasedTrainLoop, this run .* by IterBasedTrainLoop"),
        ({"model__backbone__num_classes": 12}, r"wrong shape|backbone\.fc"),
        (
            {"param_scheduler": [{"type": "ReduceOnPlateauLR", "monitor": "top1", "rule": "greater"}]},
            "a schedule that follows the scores cannot be recomputed",
        ),
    ],
)
def test_refused_in_one_line(resume, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        resume(epoch=2, **overrides)
    assert "\n" not in str(error.value) or "shape" in message


def test_best_of_another_metric_counts_anew(resume, begun, tiny_config):
    scores = {
        "top1": {"type": "MulticlassAccuracy", "num_classes": 10, "average": "micro"},
        "distance": {"type": "MulticlassCalibrationError", "num_classes": 10},
    }
    runner = resume(val_evaluator__scores=scores, default_hooks__checkpoint__save_best="distance")
    info = runner.message_hub.runtime_info
    assert info["best_metric"] == "distance" and info["best_checkpoint"] == "best_distance.pth"
    logged = [record["distance"] for record in read_scalars(runner.work_dir)[1]]
    assert info["best_score"] == min(logged)  # less is better

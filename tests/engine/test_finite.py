"""A loss that becomes NaN: the run ends, the last good checkpoint stays, or such steps are skipped."""

import math

import pytest
import torch
from engine.small import said, small_runner
from mmengine.hooks import Hook

from visionattn.engine import FiniteLossHook, latest_checkpoint, training_summary
from visionattn.utils.files import read_checkpoint


class Spoil(Hook):
    """Makes the inputs of some iterations NaN."""

    priority = "VERY_HIGH"

    def __init__(self, iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.data_preprocessor.std.fill_(math.nan if runner.iter in self.iterations else 127.5)


@pytest.fixture
def spoilt(tiny_config, tmp_path):
    def build(iterations, **overrides):
        runner = small_runner(tiny_config, tmp_path, **overrides)
        runner.register_hook(Spoil(iterations))
        return runner

    return build


def finite(path):
    return all(v.isfinite().all() for v in read_checkpoint(path)["state_dict"].values() if v.is_floating_point())


def test_ends_after_some_steps_in_a_row(spoilt, tmp_path):
    runner = spoilt(range(3, 99), train_cfg__max_epochs=3)
    with pytest.raises(ValueError, match=r"the loss is nan, step 3 in a row up to iteration 6: .*detect_anomaly") as e:
        runner.train()
    assert str(e.value).endswith(f"--resume resumes from {tmp_path / 'epoch_1.pth'}")
    assert latest_checkpoint(tmp_path).name == "epoch_1.pth" and not (tmp_path / "epoch_2.pth").exists()
    assert finite(tmp_path / "epoch_1.pth") and finite(tmp_path / "best_top1.pth")


def test_weights_that_are_not_finite_are_not_saved(spoilt, tmp_path):
    """An epoch may end before the patience does, and an evaluation may give any score."""
    runner = spoilt([5], train_cfg__max_epochs=3)
    with pytest.raises(ValueError, match=r"the weights hold NaN or infinite values \(backbone\..*are not saved"):
        runner.train()
    assert latest_checkpoint(tmp_path).name == "epoch_1.pth" and finite(tmp_path / "best_top1.pth")


def test_single_steps_are_borne_if_the_weights_are_good(spoilt, tmp_path):
    runner = spoilt([], default_hooks__finite_loss__patience=1)
    runner.train()
    assert (tmp_path / "epoch_2.pth").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_skipped_steps_leave_nothing_behind(spoilt, tmp_path, accumulate, capsys):
    """Neither in the weights, nor the optimizer, nor the statistics of batch normalization, nor the averages."""
    runner = spoilt(
        [1, 4], default_hooks__finite_loss__skip=True, optim_wrapper__accumulative_counts=accumulate, model__mixup=None
    )
    runner.train()
    assert finite(tmp_path / "epoch_2.pth") and finite(tmp_path / "best_top1.pth")
    state = read_checkpoint(tmp_path / "epoch_2.pth")["optimizer"]["state"]
    steps = {int(entry["step"]) for entry in state.values()}
    assert steps == {{1: 4, 2: 1}[accumulate]}  # of 6; of 3, two of which have a bad half
    assert "Iteration 2: the loss is nan; step skipped" in said(capsys)
    assert training_summary(runner, 1.0)["skipped"].startswith({1: "2 steps", 2: "3 steps"}[accumulate])


def test_skipping_ends_too(spoilt):
    runner = spoilt(range(1, 99), default_hooks__finite_loss__skip=True, default_hooks__finite_loss__patience=2)
    before = {name: p.clone() for name, p in runner.model.named_parameters()}
    with pytest.raises(ValueError, match="step 2 in a row up to iteration 3"):
        runner.train()
    assert all(p.isfinite().all() and p.shape == before[name].shape for name, p in runner.model.named_parameters())


@pytest.mark.parametrize("scaled", [False, True])
def test_skips_under_mixed_precision(scaled):
    """With float16's scaler, which skips overflows by itself, and with bfloat16's, which does nothing."""
    from types import SimpleNamespace

    from visionattn.engine import AutocastOptimWrapper

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), lr=0.1))
    if scaled:
        wrapper.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    hook = FiniteLossHook(skip=True)
    runner = SimpleNamespace(
        model=model, optim_wrapper=wrapper, iter=0, work_dir="", logger=SimpleNamespace(warning=lambda text: None)
    )
    hook.before_train(runner)
    for value in (1.0, math.nan, 1.0):
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with wrapper.optim_context(model):
            loss = (model(torch.randn(3, 4)).square().mean() + model[0].weight.sum()) * value
        wrapper.update_params(loss)
        model[1].running_mean.mul_(value)
        hook.after_train_iter(runner, 0, outputs={"loss": loss})
        same = all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert same == math.isnan(value)
    assert hook.skipped == 1 and hook.in_a_row == 0


def test_wrong_patience():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        FiniteLossHook(patience=0)

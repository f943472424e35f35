"""A run killed at any moment and resumed ends in the same weights and metrics, bit for bit, as one left alone."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from visionattn.engine import latest_checkpoint, read_scalars
from visionattn.utils.files import read_checkpoint

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["visionattn.cli", "visionattn.engine.runner"])


def train(config, work_dir, done, die_at=None, overrides=()):
    """Trains in this process; with `die_at` it kills itself while writing its n-th file, half of it on disk."""
    from mmengine.hooks import Hook

    from visionattn.engine import Runner, load_config
    from visionattn.utils import files as _files

    class Count(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            done.value = runner.iter + 1

    torch.set_num_threads(1)
    if die_at is not None:
        writes = iter(range(1, 1000))
        synchronise = os.fsync

        def fsync(descriptor):
            if next(writes) == die_at:
                path = f"/proc/self/fd/{descriptor}"
                os.truncate(path, os.stat(path).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            synchronise(descriptor)

        _files.os.fsync = fsync
    cfg = load_config(config, dict(overrides))
    cfg.work_dir, cfg.resume = str(work_dir), True
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Count())
    runner.train()


def run(config, work_dir, kill_at=None, die_at=None, overrides=()):
    """One process; killed a moment after an iteration, or by itself. Returns whether it lived to the end."""
    done = CONTEXT.Value("i", 0)
    process = CONTEXT.Process(target=train, args=(config, work_dir, done, die_at, overrides))
    process.start()
    if kill_at is not None:
        iteration, moment = kill_at
        while process.is_alive() and done.value < iteration:
            time.sleep(0.001)
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    return process.exitcode == 0


@pytest.fixture(scope="module")
def alone(tiny_config, tmp_path_factory):
    """The folder of a run that was left alone."""
    work_dir = tmp_path_factory.mktemp("alone")
    assert run(tiny_config, work_dir)
    return work_dir


def assert_same(left, right):
    for name in ("epoch_4.pth", "best_top1.pth"):
        a, b = (read_checkpoint(folder / name) for folder in (left, right))
        assert a["message_hub"]["runtime_info"]["best_score"] == b["message_hub"]["runtime_info"]["best_score"]
        for part in ("state_dict", "ema_state_dict"):
            assert a[part].keys() == b[part].keys()
            for key, value in a[part].items():
                assert torch.equal(value, b[part][key]), (name, part, key)
    assert [(r["step"], r["top1"]) for r in read_scalars(left)[1]] == [
        (r["step"], r["top1"]) for r in read_scalars(right)[1]
    ]
    assert not list(right.glob(".part-*"))
    assert latest_checkpoint(right).name == "epoch_4.pth"


def test_killed_at_random_moments(alone, tiny_config, tmp_path):
    moments = random.Random(0)
    for last in (6, 11, 17, 22):  # of 24 iterations, 6 an epoch
        kill_at = (moments.randint(last - 4, last), moments.uniform(0, 0.1))
        assert not run(tiny_config, tmp_path, kill_at=kill_at)
    assert run(tiny_config, tmp_path)
    assert_same(alone, tmp_path)


def test_killed_while_writing(alone, tiny_config, tmp_path):
    """Each process dies in a later one of its writes: best weights, run, pointer to the run."""
    for write in (1, 2, 3, 4, 5):
        assert not run(tiny_config, tmp_path, die_at=write)
        for path in tmp_path.glob("[!.]*.pth"):
            read_checkpoint(path)  # whatever bears a final name is whole
    assert list(tmp_path.glob(".part-*"))
    assert run(tiny_config, tmp_path)
    assert_same(alone, tmp_path)


def test_workers_change_nothing(alone, tiny_config, tmp_path):
    overrides = {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True}
    assert run(tiny_config, tmp_path, overrides=overrides)
    assert_same(alone, tmp_path)


def test_another_seed_changes_something(alone, tiny_config, tmp_path):
    assert run(tiny_config, tmp_path, overrides={"randomness.seed": 1})
    with pytest.raises(AssertionError):
        assert_same(alone, tmp_path)


def test_resume_needs_a_whole_checkpoint(alone, tiny_config, tmp_path):
    from visionattn.engine import Runner, load_config

    cfg = load_config(tiny_config)
    cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path), True, str(alone / "best_top1.pth")
    with pytest.raises(ValueError, match=r"best_top1.pth is no checkpoint that a run can resume from"):
        Runner.from_cfg(cfg).train()


def test_pointer_to_a_lost_file(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("epoch_7.pth")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed from: .*epoch_7.pth is missing"):
        latest_checkpoint(tmp_path)


def test_iterations_resume_too(tiny_config, tmp_path):
    """Runs counted in iterations, over the end of an epoch (six iterations)."""
    overrides = {
        "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 9, "val_interval": 4},
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.interval": 4,
        "param_scheduler": [{"type": "CosineAnnealingLR", "by_epoch": False, "eta_min": 0.0}],
        "custom_hooks": [],
    }
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(tiny_config, whole, overrides=overrides)
    assert not run(tiny_config, halves, kill_at=(7, 0.0), overrides=overrides)
    assert latest_checkpoint(halves).name == "iter_4.pth"
    assert run(tiny_config, halves, overrides=overrides)
    assert sorted(path.name for path in halves.glob("iter_*")) == ["iter_4.pth", "iter_8.pth", "iter_9.pth"]
    a, b = (read_checkpoint(folder / "iter_9.pth")["state_dict"] for folder in (whole, halves))
    assert all(torch.equal(value, b[key]) for key, value in a.items())

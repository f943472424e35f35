"""Signals, full disks, dead workers and second runs: one line that says how to resume, and nothing broken."""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time

import pytest
import torch
from engine.small import small_runner
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from visionattn.engine import latest_checkpoint, verify_checkpoint, work_dir_lock
from visionattn.engine.guard import guarded

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["visionattn.engine.runner"])


class At(Hook):
    """Does something before an iteration, counted from 0."""

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            self.action(runner)


def terminate_in_write(runner):
    """SIGTERM arrives when a checkpoint is half on its way."""
    from visionattn.utils import files

    synchronise = os.fsync

    def fsync(descriptor):
        os.kill(os.getpid(), signal.SIGTERM)
        synchronise(descriptor)

    files.os.fsync = fsync


def limit_files(runner):
    """As a full disk, but for this process only: no file may become larger than 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def limit_logs(runner):
    """Here the log is what can't be written."""
    size = min(path.stat().st_size for path in (runner.work_dir_path).glob("*/*.log"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def kill_worker(runner):
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


ACTIONS = {
    "term": lambda runner: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda runner: os.kill(os.getpid(), signal.SIGINT),
    "term in write": terminate_in_write,
    "full disk": limit_files,
    "full disk of logs": limit_logs,
    "dead worker": kill_worker,
    "wait": lambda runner: time.sleep(600),
}


def child(config, work_dir, action, overrides, reached):
    """Trains, and does the action in the second epoch; what it prints goes to `printed`."""
    with open(work_dir.parent / "printed", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    runner = small_runner(config, work_dir, **overrides)
    runner.work_dir_path = work_dir

    def act(runner):
        reached.set()
        ACTIONS[action](runner)

    runner.register_hook(At(4, act))
    try:
        runner.train()
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.exit(2)


@pytest.fixture
def start(tiny_config, tmp_path):
    """Starts a run in a process of its own; gives the process, and how to wait for the moment of the action."""
    processes = []

    def run(action, **overrides):
        reached = CONTEXT.Event()
        process = CONTEXT.Process(target=child, args=(tiny_config, tmp_path / "run", action, overrides, reached))
        process.start()
        processes.append(process)
        return process, reached

    yield run
    for process in processes:
        process.kill()


def assert_clean(work_dir):
    """Only whole files, and the first epoch to resume from."""
    assert not list(work_dir.glob(".part-*"))
    for path in work_dir.glob("*.pth"):
        verify_checkpoint(path)
    assert latest_checkpoint(work_dir).name == "epoch_1.pth" and not (work_dir / "epoch_2.pth").exists()


CASES = {
    "term": (143, "Stopped by SIGTERM; --resume resumes from {}/epoch_1.pth"),
    "int": (1, "KeyboardInterrupt: --resume resumes from {}/epoch_1.pth"),
    "term in write": (143, "Stopped by SIGTERM; --resume resumes from {}/epoch_1.pth"),
    "full disk": (2, r"OSError: File too large: {}/(best_top1|epoch_2)\.pth; --resume"),
    "full disk of logs": (2, r"OSError: File too large: {}/.*\.log; --resume"),
    "dead worker": (2, "ChildProcessError: the data loader's worker process"),
}


@pytest.mark.parametrize("action", CASES)
def test_ends_clean_and_says_how_to_resume(action, start, tmp_path, tiny_config):
    code, message = CASES[action]
    workers = {"train_dataloader__num_workers": 1, "train_dataloader__persistent_workers": True}
    process, _ = start(action, **(workers if action == "dead worker" else {}))
    process.join(60)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == code, printed
    assert re.search(message.format(tmp_path / "run"), printed) and "--resume resumes from" in printed
    assert action == "int" or "Traceback" not in printed  # here the command line would end quietly
    assert_clean(tmp_path / "run")
    if action == "term in write":
        small_runner(tiny_config, tmp_path / "run", resume=True).train()
        assert latest_checkpoint(tmp_path / "run").name == "epoch_2.pth"


class TextWhoseReaderIsCutOff(str):
    """Breaks the connection when it is read in the main process; its worker counts as alive for a moment more."""

    def __reduce__(self):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return cut_off, ()


def cut_off():
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


@pytest.mark.parametrize("item, expected", [(TextWhoseReaderIsCutOff(), ChildProcessError), (1, ConnectionResetError)])
def test_a_broken_connection_to_a_dying_worker(item, expected, tiny_config, tmp_path):
    """Which of the two the loader sees first is chance: the connection that breaks, or the process that ends."""
    runner = small_runner(tiny_config, tmp_path)
    runner.message_hub.update_info("loop_stage", "train")
    with pytest.raises(expected, match="hint"), guarded(runner, lambda: "hint"):
        next(iter(DataLoader([item], batch_size=None, num_workers=1, multiprocessing_context="fork")))
        cut_off()


def test_one_run_a_folder(start, tmp_path, tiny_config):
    """Its workers outlive a killed run for seconds; the lock does not."""
    process, reached = start("wait", train_dataloader__num_workers=1, train_dataloader__persistent_workers=True)
    assert reached.wait(60)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").glob("*.*"))
    with pytest.raises(ValueError, match=rf"is in use by another run \(process {process.pid} on .*--work-dir"):
        small_runner(tiny_config, tmp_path / "run", train_cfg__max_epochs=3).train()
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").glob("*.*"))[: len(before)] == before
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with work_dir_lock(tmp_path / "run"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    from visionattn.engine import lock

    def refuse(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with work_dir_lock(tmp_path):
        pass


def test_signals_are_as_before_afterwards(tiny_config, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ValueError):
        small_runner(tiny_config, tmp_path, model__backbone__num_classes=12).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_scalars_cut_short_are_passed_over(tmp_path):
    from visionattn.engine import read_scalars

    folder = tmp_path / "a" / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text(json.dumps({"loss": None, "step": 1}) + '\n{"loss": 0.')
    train, _ = read_scalars(tmp_path)
    assert len(train) == 1 and train[0]["loss"] != train[0]["loss"]

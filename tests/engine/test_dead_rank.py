"""Two processes train together; one dies, and the other ends within seconds and says why."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from engine.small import small_runner
from mmengine.hooks import Hook

from visionattn.engine import read_scalars

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["visionattn.engine.runner"])


class Die(Hook):
    """Ends one process without a word at iteration 2, and can keep the others busy elsewhere."""

    def __init__(self, rank, busy):
        self.rank, self.busy = rank, busy

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            if runner.rank == self.rank:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.busy:
                time.sleep(300)  # as a long evaluation without communication


def train(config, work_dir, doomed, busy, resume=False, **overrides):
    torch.set_num_threads(1)
    runner = small_runner(config, work_dir, resume, launcher="pytorch", **overrides)
    runner.register_hook(Die(doomed, busy))
    runner.train()


def child(config, work_dir, rank, port, doomed, busy, resume=False, overrides=()):
    with open(work_dir.parent / f"printed{rank}", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        train(config, work_dir, doomed, busy, resume, **dict(overrides))
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.exit(2)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("doomed, busy", [(1, False), (0, False), (1, True)])
def test_without_an_agent(doomed, busy, tiny_config, tmp_path):
    port = free_port()
    ranks = [
        CONTEXT.Process(target=child, args=(tiny_config, tmp_path / "run", rank, port, doomed, busy)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    try:
        ranks[doomed].join(100)
        assert ranks[doomed].exitcode == -signal.SIGKILL, (tmp_path / f"printed{doomed}").read_text()
        died = time.monotonic()
        survivor = 1 - doomed
        ranks[survivor].join(20)
        printed = (tmp_path / f"printed{survivor}").read_text()
        assert ranks[survivor].exitcode == (1 if busy else 2), printed
        assert time.monotonic() - died < 20
        assert f"the process of rank {doomed} has died, so that rank {survivor} ends too; no checkpoint" in printed
        assert "Traceback" not in printed
    finally:
        for process in ranks:
            process.kill()


def test_with_an_agent(tiny_config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom engine.test_dead_rank import train\n"
        "train(sys.argv[1], Path(sys.argv[2]), 1, False)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(script), str(tiny_config), str(tmp_path / "run")]
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    printed = done.stdout + done.stderr
    # The agent ends the survivor too: whichever comes first says which rank has died.
    by_agent = "Signal 9 (SIGKILL) received" in printed and re.search(r"\brank\s+: 1 ", printed)
    assert "the process of rank 1 has died, so that rank 0 ends too; no checkpoint" in printed or by_agent


WHOLE = {  # 359 samples an epoch
    "train_dataloader__num_batch_per_epoch": None,  # 9 batches, or 5 for each of two processes
    "train_dataloader__dataset__split": "test",
    "train_dataloader__batch_size": 36,
    "train_dataloader__drop_last": True,
}


def test_resumes_with_more_processes_and_nobody_is_taken_for_dead(tiny_config, tmp_path):
    """Half as many steps an epoch; epochs and schedules go on where they would be with two processes all along."""
    small_runner(tiny_config, tmp_path / "run", **WHOLE).train()
    port, overrides = free_port(), {**WHOLE, "train_cfg__max_epochs": 3, "param_scheduler": SCHEDULE}
    ranks = [
        CONTEXT.Process(
            target=child, args=(tiny_config, tmp_path / "run", rank, port, None, False, True, list(overrides.items()))
        )
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    printed = [(tmp_path / f"printed{rank}").read_text() for rank in (0, 1)]
    assert [process.exitcode for process in ranks] == [0, 0] and "died" not in "".join(printed), printed
    assert "processes 1 -> 2, batches an epoch 9 -> 5" in printed[0]
    assert "Resumed after epoch 2, iteration 10" in printed[0] and "processes" not in printed[1]
    last = [record for record in read_scalars(tmp_path / "run")[0] if record["epoch"] == 3]
    assert [record["step"] for record in last] == [11, 12, 13, 14, 15]
    assert [record["lr"] for record in last] == pytest.approx([0.004 * (15 - step) / 15 for step in range(10, 15)])


SCHEDULE = [{"type": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "by_epoch": False, "end": 16}]

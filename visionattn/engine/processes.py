"""The processes of a run: connecting them, and letting one work while the others wait."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import broadcast_object_list, init_dist

__all__ = ["first_process_does", "join_processes"]


def join_processes(launcher: str, backend: str = "nccl", **settings: Any) -> None:
    """Connects the processes that a launcher has started, if they are not yet connected; mmengine reuses that.

    Args:
        launcher: `none`, `pytorch` or `slurm`.
        backend: Of the communication between GPUs; CPUs take gloo.
        **settings: Of the process group, such as `timeout` in seconds.

    Raises:
        ValueError: If there is no such launcher, or the processes were started otherwise.
    """
    if launcher == "none" or dist.is_initialized():
        return
    if torch.cuda.is_available():
        if torch.multiprocessing.get_start_method(allow_none=True) is None:
            torch.multiprocessing.set_start_method("fork")  # as packaged configs have it; init_dist would take another
        init_dist(launcher, backend, **settings)
    else:
        _join_cpu_group(launcher, settings.get("timeout"))


def first_process_does(action: Callable[[], None]) -> None:
    """Runs a function in the first process while the others wait until it is done. For connected processes.

    Args:
        action: What to do, such as to write a file that all of them will read.

    Raises:
        Exception: In the first process what the action raises, in the others a ValueError that says so.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    fault: Exception | None = None
    if first:
        try:
            action()
        except Exception as error:
            fault = error
    news = [None if fault is None else f"{type(fault).__name__}: {fault}"]
    broadcast_object_list(news)
    if news[0] is not None and dist.is_initialized():
        dist.barrier()  # who leaves while others still talk to it takes them down
        dist.destroy_process_group()
    if fault is not None:
        raise fault
    if news[0] is not None:
        raise ValueError(f"the first process failed: {news[0]}")


def _join_cpu_group(launcher: str, seconds: float | None) -> None:
    if launcher == "slurm":
        os.environ.update(
            RANK=os.environ["SLURM_PROCID"],
            WORLD_SIZE=os.environ["SLURM_NTASKS"],
            LOCAL_RANK=os.environ["SLURM_LOCALID"],
            MASTER_PORT=os.environ.get("MASTER_PORT", "29500"),
            MASTER_ADDR=os.environ.get("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"]),
        )
    elif launcher != "pytorch":
        raise ValueError(f"launcher must be 'none', 'pytorch' or 'slurm', got {launcher!r}")
    missing = [
        name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f"launcher 'pytorch' needs {', '.join(missing)} in the environment: start with "
            f"`torchrun --nproc-per-node 2 {Path(sys.argv[0]).name} ...`"
        )
    dist.init_process_group("gloo", timeout=None if seconds is None else timedelta(seconds=seconds))

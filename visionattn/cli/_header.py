"""The header that describes a run before it begins."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.engine import Runner

__all__ = ["choose_threads", "describe_run"]

# Multiplications of a step's forward pass under which a second thread only costs: a step of the quickstart (0.29 G)
# takes 61 ms with one thread and 73 ms with two, one of Fashion-MNIST (0.49 G) as long with either.
_SMALL = 0.5e9


def choose_threads(runner: "Runner") -> None:
    """Trains a small classifier with one thread, unless OMP_NUM_THREADS is set or a GPU computes."""
    import copy

    import torch

    from visionattn.profiling.cost import count_macs

    model = _plain(runner.model)
    is_classifier = getattr(model, "kind", "") == "classification"
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available() or not is_classifier:
        return
    loader = runner.train_dataloader
    size = loader.dataset[0]["inputs"].shape
    if loader.batch_size * count_macs(copy.deepcopy(model.backbone).to("meta"), size) < _SMALL:
        torch.set_num_threads(1)


def describe_run(runner: "Runner") -> str:
    """Device, network, data, length and work folder of a run that is about to begin."""
    import torch
    from mmengine.device import get_device
    from mmengine.runner import EpochBasedTrainLoop

    device = get_device()
    if device == "cuda":
        device = f"cuda ({torch.cuda.get_device_name()})"
    else:
        count = torch.get_num_threads()
        device = f"{device}, {count} thread{'s' * (count != 1)}"
    if runner.world_size > 1:
        device = f"{device}, {runner.world_size} processes"
    model = _plain(runner.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    train = runner.train_dataloader
    data = f"{len(train.dataset):,} to train on"
    if runner.val_loop is not None:
        data += f", {len(runner.val_dataloader.dataset):,} to evaluate on"
    if classes := getattr(train.dataset, "metainfo", {}).get("classes"):
        data += f", {len(classes)} classes"
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    epochs = f"{runner.max_epochs} epoch{'s' * (runner.max_epochs != 1)}"
    length = f"{epochs} of {len(train)} steps" if by_epoch else f"{runner.max_iters:,} steps"
    name = runner.cfg.model.get("backbone", {}).get("model_name", type(model).__name__)
    kind = runner.cfg.train_dataloader.dataset.get("type")
    lines = {
        "device": device,
        "network": f"{name}, {parameters / 1e6:.2f} M parameters ({type(model).__name__})",
        "data": f"{data} ({getattr(kind, '__name__', kind)})",
        "length": f"{length}, {train.batch_size} pictures each",
        "folder": runner.work_dir,
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def _plain(model: Any) -> Any:
    return getattr(model, "module", model)

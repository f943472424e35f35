"""Cheap checks that catch a wrong config before hours are spent on it."""

from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from .metrics import TorchMetrics

__all__ = ["DataCheckHook", "check_batches"]


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Raises if the classes of data sets, network and metrics do not match; for training, before it begins."""

    def before_train(self, runner: Any) -> None:
        """Checks training and validation."""
        _check_classes(runner, "train_dataloader")
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner: Any) -> None:
        """Checks the validation set and its metrics."""
        _check_classes(runner, "val_dataloader")
        _check_metrics(runner, "val_evaluator")

    def before_test(self, runner: Any) -> None:
        """Checks the test set and its metrics."""
        _check_classes(runner, "test_dataloader")
        _check_metrics(runner, "test_evaluator")


def _check_classes(runner: Any, name: str) -> None:
    dataset, known = getattr(runner, name).dataset, _num_classes(runner)
    classes = getattr(dataset, "metainfo", {}).get("classes")
    if classes is not None and known is not None and len(classes) > known:
        raise ValueError(
            f"{name}: {type(dataset).__name__} has {len(classes)} classes, but the model's num_classes is only {known}"
        )


def _check_metrics(runner: Any, name: str) -> None:
    known = _num_classes(runner)
    for metrics in getattr(runner, name).metrics:
        for key, metric in (metrics.metrics if isinstance(metrics, TorchMetrics) else {}).items():
            own = getattr(metric, "num_classes", None)
            if None not in (own, known) and own != known:
                raise ValueError(
                    f"{name}.scores.{key}.num_classes is {own}, but the model's num_classes is {known}: set both to "
                    "the same number"
                )


def _num_classes(runner: Any) -> int | None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return getattr(model, "num_classes", None)


def check_batches(loader: DataLoader, model: nn.Module, processes: int) -> None:
    """Checks that there is a batch to train on, and that the last one of an epoch is not too small for the network.

    Args:
        loader: Of the training set.
        model: An mmengine model; a wrapped one is unwrapped.
        processes: How many train together.

    Raises:
        ValueError: If not.
    """
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler
    samples, batch = len(dataset), loader.batch_size
    if len(loader) == 0:
        raise ValueError(
            f"train_dataloader: batch_size={batch} leaves no batch to train on: {processes} process(es) share "
            f"{samples} samples, and drop_last={loader.drop_last}; choose a smaller batch_size or drop_last=False"
        )
    if batch is None or isinstance(sampler, InfiniteSampler):
        return
    last = len(sampler) % batch
    if batch == 1 or (last == 1 and not loader.drop_last):
        inner: Any = model.module if is_model_wrapper(model) else model
        _check_single(loader, inner)


def _check_single(loader: DataLoader, model: Any) -> None:
    """Tries a batch of one if the network normalises over batches; the network is left unchanged."""
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    sampler: Any = loader.sampler
    batch = loader.collate_fn([loader.dataset[next(iter(sampler))]])
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            data = model.data_preprocessor(batch, training=True)
            functional_call(model, buffers, kwargs={**data, "mode": "loss"})
    except ValueError as error:
        raise ValueError(
            f"train_dataloader: a batch of one sample, as batch_size={loader.batch_size} leaves the last of an epoch "
            f"({len(sampler)} samples), cannot be trained on: {error}; choose another batch_size or "
            "drop_last=True"
        ) from error
    finally:
        model.train(training)

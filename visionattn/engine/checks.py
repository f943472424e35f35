"""Checks that cost nothing and catch a wrong config before hours are spent on it."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

__all__ = ["DataCheckHook"]


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Raises if a data set has more classes than the network's head."""

    def before_train(self, runner: Any) -> None:
        """Checks the training set."""
        _check(runner, "train_dataloader")

    def before_val(self, runner: Any) -> None:
        """Checks the validation set."""
        _check(runner, "val_dataloader")

    def before_test(self, runner: Any) -> None:
        """Checks the test set."""
        _check(runner, "test_dataloader")


def _check(runner: Any, name: str) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    dataset = getattr(runner, name).dataset
    classes = getattr(dataset, "metainfo", {}).get("classes")
    if classes is not None and len(classes) > model.num_classes:
        raise ValueError(
            f"{name}: {type(dataset).__name__} has {len(classes)} classes, but the model's num_classes is only "
            f"{model.num_classes}"
        )

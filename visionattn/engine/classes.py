"""Classes are decided in one place, by the training set; other data sets are matched by name."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from visionattn.data import share_classes

__all__ = ["ClassesHook"]


@HOOKS.register_module()
class ClassesHook(Hook):
    """Numbers the classes of validation and test sets as in the training set, or as in the checkpoint.

    A class that such a set lacks is logged; one that training does not have is an error.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.classes: tuple[str, ...] | None = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Takes the classes that the weights were trained on."""
        meta = (checkpoint.get("meta") or {}).get("dataset_meta") or {}
        self.classes = tuple(meta["classes"]) if meta.get("classes") else None

    def before_train(self, runner: Any) -> None:
        """Takes the training set's classes and applies them to the validation set.

        Raises:
            ValueError: If the run is resumed with other classes.
        """
        classes = _classes_of(runner.train_dataloader.dataset)
        if runner._resume and classes is not None and self.classes is not None and classes != self.classes:
            raise ValueError(
                f"the run was begun with the classes {', '.join(self.classes)}, but the training set now has "
                f"{', '.join(classes)}: resume with the same data, or train anew"
            )
        self.classes = classes
        if runner.val_loop is not None:
            self._share(runner.val_loop)

    def before_val(self, runner: Any) -> None:
        """Applies the classes to the validation set."""
        self._share(runner.val_loop)

    def before_test(self, runner: Any) -> None:
        """Applies the classes to the test set."""
        self._share(runner.test_loop)

    def _share(self, loop: Any) -> None:
        if self.classes is not None:
            share_classes(loop.dataloader.dataset, self.classes)
            loop.evaluator.dataset_meta = loop.dataloader.dataset.metainfo


def _classes_of(dataset: Any) -> tuple[str, ...] | None:
    classes = getattr(dataset, "metainfo", {}).get("classes")
    return None if classes is None else tuple(classes)

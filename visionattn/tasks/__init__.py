"""Networks with their losses, as mmengine trains them, and the registries that user files extend.

A task is imported when a config or a name asks for it: a classifier needs no detector, and no decoder.
"""

from typing import Any

from mmengine.registry import MODELS

from visionattn.utils.lazy import import_name

from . import collectors, frontends, heads, losses  # noqa: F401  (registered by importing)
from .registry import DECODERS, DETECTORS, FRONTENDS, HEADS, LOSS_COLLECTORS, LOSSES

_TASKS = {"Classifier": "classifier", "Detector": "detector", "Segmentor": "segmentor"}
_MODULES = {**_TASKS, "build_task": "published", "from_checkpoint": "published"}
__all__ = ["DECODERS", "DETECTORS", "FRONTENDS", "HEADS", "LOSSES", "LOSS_COLLECTORS", *_MODULES]


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)


def _register(name: str) -> None:
    def create(**arguments: Any) -> Any:
        return __getattr__(name)(**arguments)

    create.__name__ = name
    MODELS.register_module(name=name, module=create)


for _name in _TASKS:
    _register(_name)

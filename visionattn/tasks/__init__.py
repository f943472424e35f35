"""Networks with their losses, as mmengine trains them, and the tables that files of one's own add to.

A task is imported when a config or a name asks for it: a classifier needs no detector, and no decoder.
"""

from importlib import import_module
from typing import Any

from mmengine.registry import MODELS

from . import heads, losses  # noqa: F401  (registered by importing)
from .registry import DECODERS, DETECTORS, HEADS, LOSS_COLLECTORS, LOSSES

__all__ = ["DECODERS", "DETECTORS", "HEADS", "LOSSES", "LOSS_COLLECTORS", "Classifier", "Detector", "Segmentor"]

_TASKS = {"Classifier": ".classifier", "Detector": ".detector", "Segmentor": ".segmentor"}


def __getattr__(name: str) -> Any:
    if name not in _TASKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_TASKS[name], __name__), name)


def _register(name: str) -> None:
    def create(**arguments: Any) -> Any:
        return __getattr__(name)(**arguments)

    create.__name__ = name
    MODELS.register_module(name=name, module=create)


for _name in _TASKS:
    _register(_name)

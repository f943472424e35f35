"""Networks with their losses, as mmengine trains them; each is imported, and so registered, when it is first used."""

from typing import Any

from visionattn.utils.lazy import import_name

_MODULES = {
    "Classifier": "classifier",
    "Detector": "detector",
    "Segmentor": "segmentor",
    "build_task": "published",
    "from_checkpoint": "published",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)

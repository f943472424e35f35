"""Pictures of predictions, samples and curves."""

from typing import Any

from visionattn.utils.lazy import import_name

_MODULES = {
    "draw_classification": "predictions",
    "draw_confusion": "curves",
    "draw_detections": "predictions",
    "draw_grid": "predictions",
    "draw_learning_curve": "curves",
    "draw_precision_recall": "curves",
    "draw_sample": "samples",
    "draw_segmentation": "predictions",
    "line_styles": "curves",
    "palette": "colours",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)

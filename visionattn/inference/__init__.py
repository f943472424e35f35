"""Predicting on pictures with a registered network, a published checkpoint, or a config and its checkpoint."""

from .files import find_images, save_predictions
from .predictor import Predictor
from .results import Classification, Detection, Prediction, Segmentation

__all__ = [
    "Classification",
    "Detection",
    "Prediction",
    "Predictor",
    "Segmentation",
    "find_images",
    "save_predictions",
]

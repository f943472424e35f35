"""Networks with their losses, as mmengine trains them."""

from .classifier import Classifier
from .detector import Detector
from .segmentor import Segmentor

__all__ = ["Classifier", "Detector", "Segmentor"]

"""Networks with their losses, as mmengine trains them."""

from .classifier import Classifier
from .detector import Detector
from .published import build_task, from_checkpoint
from .segmentor import Segmentor

__all__ = ["Classifier", "Detector", "Segmentor", "build_task", "from_checkpoint"]

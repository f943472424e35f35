"""The networks, registered with timm under `va_*` when this package is imported."""

from .va_mobilenet import MobileNet
from .va_resnet import ResNet

__all__ = ["MobileNet", "ResNet"]

"""The networks, registered with timm under `va_*` when this package is imported."""

from .va_pkcam_resnet import PKCAMResNet
from .va_resnet import ResNet

__all__ = ["PKCAMResNet", "ResNet"]

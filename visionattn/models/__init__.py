"""The networks, registered with timm under `va_*` when this package is imported."""

from .va_resnet import ResNet

__all__ = ["ResNet"]

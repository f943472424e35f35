"""The networks, registered with timm under `va_*` when this package is imported."""

from .va_balanced import BalancedNet
from .va_bam_resnet import BAMResNet
from .va_coord_mobilenetv2 import CoordMobileNetV2
from .va_resnet import ResNet

__all__ = ["BAMResNet", "BalancedNet", "CoordMobileNetV2", "ResNet"]

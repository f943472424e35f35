"""The networks, registered with timm under `va_*` when this package is imported."""

from ._build import check_state_dict, unwrap
from .va_balanced import BalancedNet
from .va_bam_resnet import BAMResNet
from .va_mobilenet import MobileNet
from .va_pkcam_resnet import PKCAMResNet
from .va_resnet import ResNet

__all__ = [
    "BAMResNet",
    "BalancedNet",
    "MobileNet",
    "PKCAMResNet",
    "ResNet",
    "check_state_dict",
    "unwrap",
]

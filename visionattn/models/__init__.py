"""The networks, registered with timm under `va_*` when this package is imported."""

from ._build import CONVERTERS, check_state_dict, unwrap
from ._pyramid import Place, Pyramid
from .va_balanced import BalancedNet
from .va_bam_resnet import BAMResNet
from .va_boat import BOATCSwin, BOATSwin
from .va_davit import DaViT
from .va_flatten import FLattenCSwin, FLattenDeiT, FLattenPVT, FLattenPVTv2, FLattenSwin
from .va_lkca import LKCAViT
from .va_mobilenet import MobileNet
from .va_pkcam_resnet import PKCAMResNet
from .va_resnet import ResNet
from .va_stm import STM, Mechanism
from .va_twins import Twins

__all__ = [
    "CONVERTERS",
    "STM",
    "BAMResNet",
    "BOATCSwin",
    "BOATSwin",
    "BalancedNet",
    "DaViT",
    "FLattenCSwin",
    "FLattenDeiT",
    "FLattenPVT",
    "FLattenPVTv2",
    "FLattenSwin",
    "LKCAViT",
    "Mechanism",
    "MobileNet",
    "PKCAMResNet",
    "Place",
    "Pyramid",
    "ResNet",
    "Twins",
    "check_state_dict",
    "unwrap",
]

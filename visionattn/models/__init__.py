"""The networks, registered with timm under `va_*` when this package is imported."""

from visionattn.models.families.va_balanced import BalancedNet
from visionattn.models.families.va_bam_resnet import BAMResNet
from visionattn.models.families.va_boat import BOATCSwin, BOATSwin
from visionattn.models.families.va_davit import DaViT
from visionattn.models.families.va_flatten import FLattenCSwin, FLattenDeiT, FLattenPVT, FLattenPVTv2, FLattenSwin
from visionattn.models.families.va_lkca import LKCAViT
from visionattn.models.families.va_mobilenet import MobileNet
from visionattn.models.families.va_pkcam_resnet import PKCAMResNet
from visionattn.models.families.va_resnet import ResNet
from visionattn.models.families.va_stm import STM, Mechanism
from visionattn.models.families.va_twins import Twins
from visionattn.models.hosts.pyramid import BlockContext, Pyramid

from .builder import CONVERTERS, check_state_dict, unwrap

__all__ = [
    "CONVERTERS",
    "STM",
    "BAMResNet",
    "BOATCSwin",
    "BOATSwin",
    "BalancedNet",
    "BlockContext",
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
    "Pyramid",
    "ResNet",
    "Twins",
    "check_state_dict",
    "unwrap",
]

"""The networks, registered with timm under `va_*` when this package is imported."""

from .builder import check_state_dict, unwrap
from .families.va_balanced import BalancedNet
from .families.va_bam_resnet import BAMResNet
from .families.va_boat import BOATCSwin, BOATSwin
from .families.va_davit import DaViT
from .families.va_dhvt import dhvt
from .families.va_flatten import FLatten
from .families.va_lkca import lkca_vit
from .families.va_moh_vit import MoHViT
from .families.va_pkcam_resnet import PKCAMResNet
from .families.va_ravlt import RAVLT
from .families.va_stm import STM
from .families.va_twins import Twins
from .families.va_vit import vit
from .hosts.columnar import Columnar
from .hosts.cross_layer import CrossLayerResNet
from .hosts.mobilenet import MobileNet
from .hosts.pyramid import BlockContext, Pyramid
from .hosts.resnet import ResNet
from .registry import CONVERTERS, Network, register_family

__all__ = [
    "CONVERTERS",
    "RAVLT",
    "STM",
    "BAMResNet",
    "BOATCSwin",
    "BOATSwin",
    "BalancedNet",
    "BlockContext",
    "Columnar",
    "CrossLayerResNet",
    "DaViT",
    "FLatten",
    "MoHViT",
    "MobileNet",
    "Network",
    "PKCAMResNet",
    "Pyramid",
    "ResNet",
    "Twins",
    "check_state_dict",
    "dhvt",
    "lkca_vit",
    "register_family",
    "unwrap",
    "vit",
]

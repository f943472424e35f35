"""What mmengine needs from us to train, resume, evaluate and report; importing it makes our configs' types known."""

from visionattn import data, tasks  # noqa: F401  (registered by importing)

from .amp import AutocastOptimWrapper
from .checkpoint import AtomicCheckpointHook, latest_checkpoint
from .checks import DataCheckHook
from .config import list_configs, load_config
from .metrics import TorchMetrics
from .optim import TimmOptimWrapperConstructor
from .progress import ProgressHook
from .report import draw_learning_curve, draw_scores, read_scalars
from .runner import Runner
from .seeding import StepSeedHook

__all__ = [
    "AtomicCheckpointHook",
    "AutocastOptimWrapper",
    "DataCheckHook",
    "ProgressHook",
    "Runner",
    "StepSeedHook",
    "TimmOptimWrapperConstructor",
    "TorchMetrics",
    "draw_learning_curve",
    "draw_scores",
    "latest_checkpoint",
    "list_configs",
    "load_config",
    "read_scalars",
]

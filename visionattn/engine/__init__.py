"""What mmengine needs from us to train, resume, evaluate and report; importing it makes our configs' types known."""

from visionattn import data, tasks  # noqa: F401  (registered by importing)
from visionattn.visualization.predictions import draw_classification, draw_detections, draw_grid, draw_segmentation

from .amp import AutocastOptimWrapper
from .browse import draw_samples
from .checkpoint import AtomicCheckpointHook, latest_checkpoint
from .checks import DataCheckHook
from .classes import ClassesHook
from .config import list_configs, load_config
from .metrics import TorchMetrics
from .optim import TimmOptimWrapperConstructor
from .progress import ProgressHook
from .report import draw_learning_curve, draw_scores, read_scalars
from .runner import Runner
from .scores import SCORES, DetectionScores, SegmentationScores
from .seeding import StepSeedHook

__all__ = [
    "SCORES",
    "AtomicCheckpointHook",
    "AutocastOptimWrapper",
    "ClassesHook",
    "DataCheckHook",
    "DetectionScores",
    "ProgressHook",
    "Runner",
    "SegmentationScores",
    "StepSeedHook",
    "TimmOptimWrapperConstructor",
    "TorchMetrics",
    "draw_classification",
    "draw_detections",
    "draw_grid",
    "draw_learning_curve",
    "draw_samples",
    "draw_scores",
    "draw_segmentation",
    "latest_checkpoint",
    "list_configs",
    "load_config",
    "read_scalars",
]

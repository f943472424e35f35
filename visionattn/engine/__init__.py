"""What mmengine needs from us to train, resume, evaluate and report; importing it makes our configs' types known."""

from visionattn import data, tasks  # noqa: F401  (registered by importing)
from visionattn.visualization.predictions import draw_classification, draw_detections, draw_grid, draw_segmentation

from .amp import AutocastOptimWrapper
from .browse import draw_samples
from .checkpoint import AtomicCheckpointHook
from .checks import DataCheckHook
from .config import list_configs, load_config
from .finite import FiniteLossHook
from .lock import work_dir_lock
from .logs import JsonLoggerHook, JsonVisBackend
from .metric_info import MetricInfo, metric_info
from .metrics import TorchMetrics
from .optim import TimmOptimWrapperConstructor
from .progress import ProgressHook
from .report import draw_learning_curve, draw_scores, read_scalars
from .resume import latest_checkpoint, verify_checkpoint
from .runner import Runner
from .scores import DetectionScores, SegmentationScores
from .seeding import StepSeedHook
from .summary import training_summary

__all__ = [
    "AtomicCheckpointHook",
    "AutocastOptimWrapper",
    "DataCheckHook",
    "DetectionScores",
    "FiniteLossHook",
    "JsonLoggerHook",
    "JsonVisBackend",
    "MetricInfo",
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
    "metric_info",
    "read_scalars",
    "training_summary",
    "verify_checkpoint",
    "work_dir_lock",
]

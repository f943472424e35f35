"""Extensions of mmengine needed to train, resume, evaluate and report.

Each name is imported when it is first used; `visionattn.engine.registration` makes all types that configs name known.
"""

from typing import Any

from visionattn.utils.lazy import import_name

_MODULES = {
    "AtomicCheckpointHook": "checkpoint",
    "AttentionLogHook": "attention",
    "AutocastOptimWrapper": "amp",
    "ClassesHook": "classes",
    "DataCheckHook": "checks",
    "DetectionScores": "scores",
    "FiniteLossHook": "finite",
    "JsonLoggerHook": "logs",
    "JsonVisBackend": "logs",
    "MetricInfo": "units",
    "ProgressHook": "progress",
    "Runner": "runner",
    "SCORES": "scores",
    "SegmentationScores": "scores",
    "StepSeedHook": "seeding",
    "TimmOptimWrapperConstructor": "optim",
    "TorchMetrics": "metrics",
    "draw_learning_curve": "report",
    "draw_samples": "browse",
    "draw_scores": "report",
    "first_process_does": "processes",
    "join_processes": "processes",
    "latest_checkpoint": "resume",
    "list_configs": "config",
    "load_config": "config",
    "metric_info": "units",
    "read_scalars": "report",
    "training_summary": "summary",
    "verify_checkpoint": "resume",
    "work_dir_lock": "lock",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return import_name(__name__, _MODULES, name)

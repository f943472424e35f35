"""Every metric, through one adapter to torchmetrics."""

from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics.classification
import torchmetrics.detection
import torchmetrics.segmentation
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

__all__ = ["TorchMetrics"]

_MODULES = (torchmetrics.classification, torchmetrics.detection, torchmetrics.segmentation)


@METRICS.register_module()
class TorchMetrics(BaseMetric):
    """Computes metrics of torchmetrics over the whole data set, each sample counted once in however many processes.

    The network's predictions are dicts with `preds` and `target`; tensors are stacked, anything else goes on as lists.

    Args:
        scores: Name of a result -> config: `type` is a class of torchmetrics, the rest its arguments. A metric that
            gives one number a class is reported as `<name>/<class>`, several named numbers as `<name>/<key>`.
        prefix: Goes before the names, with a slash.

    Raises:
        ValueError: If a metric's type is unknown or its arguments are wrong.
    """

    default_prefix = ""

    def __init__(self, scores: dict[str, dict[str, Any]], prefix: str | None = None) -> None:
        # Results travel between processes as objects; mmengine's other way leaves a folder of pickles behind.
        super().__init__(collect_device="gpu", prefix=prefix)
        self.metrics = {name: _build(name, config) for name, config in scores.items()}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps a batch of predictions."""
        self.results.extend({"preds": _cpu(s["preds"]), "target": _cpu(s["target"])} for s in data_samples)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Computes all metrics over all samples."""
        preds, target = (_collate([result[key] for result in results]) for key in ("preds", "target"))
        values: dict[str, float] = {}
        for name, metric in self.metrics.items():
            metric.reset()
            metric.update(preds, target)
            values.update(self._flatten(name, metric.compute()))
        return values

    def _flatten(self, name: str, value: Any) -> dict[str, float]:
        if isinstance(value, dict):
            return {key: v for k, part in value.items() for key, v in self._flatten(f"{name}/{k}", part).items()}
        if value.ndim == 0:
            return {name: value.item()}
        classes = (self.dataset_meta or {}).get("classes") or range(len(value))
        return {f"{name}/{label}": v for label, v in zip(classes, value.tolist(), strict=True)}


def _build(name: str, config: dict[str, Any]) -> torchmetrics.Metric:
    arguments = dict(config)
    kind = arguments.pop("type", None)
    cls = next((getattr(module, str(kind)) for module in _MODULES if hasattr(module, str(kind))), None)
    if cls is None:
        raise ValueError(f"metric {name!r}: type must be a class of torchmetrics, got {kind!r}")
    try:
        # Only one process computes, over everything: nothing to synchronise.
        return cls(**arguments, sync_on_compute=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric {name!r}: {kind}({arguments}): {error}") from error


def _cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _collate(values: list[Any]) -> Any:
    return torch.stack(values) if values and isinstance(values[0], torch.Tensor) else values

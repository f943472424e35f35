"""Every metric, through one adapter to torchmetrics."""

import warnings
from collections import UserDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torchmetrics.classification
import torchmetrics.detection
import torchmetrics.segmentation
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from visionattn.utils.building import build, did_you_mean

from . import scores as own
from .units import MetricInfo, describe

__all__ = ["TorchMetrics"]

_MODULES = (torchmetrics.classification, torchmetrics.detection, torchmetrics.segmentation)


@METRICS.register_module()
class TorchMetrics(BaseMetric):
    """Computes metrics of torchmetrics over the whole data set, each sample counted once in however many processes.

    The network's predictions are dicts with `preds` and `target`. They are kept until the end, tensors stacked then and
    anything else as lists; of what a `PictureMetric` is for, only digests are kept.

    Args:
        scores: Name of a result -> config: `type` is a class of torchmetrics or `visionattn.engine.scores`, the rest
            its arguments. A metric that gives one number a class is reported as `<name>/<class>`, several named
            numbers as `<name>/<key>`. Which values are better and in what unit they are is known of the class;
            `better='less'` (or `'greater'`) and `unit='px'` (`'fraction'` is printed in percent) say otherwise.
        prefix: Goes before the names, with a slash.

    Raises:
        ValueError: If a metric's type is unknown or its arguments are wrong.
    """

    default_prefix = ""

    def __init__(self, scores: dict[str, dict[str, Any]], prefix: str | None = None) -> None:
        # Results travel between processes as objects; mmengine's other way leaves a folder of pickles behind.
        super().__init__(collect_device="gpu", prefix=prefix)
        self.metrics: dict[str, torchmetrics.Metric] = {}
        self._info: dict[str, MetricInfo] = {}
        for name, config in scores.items():
            arguments = dict(config)
            stated = {key: arguments.pop(key, None) for key in ("better", "unit")}
            self.metrics[name] = _build(name, arguments)
            self._info[name] = describe(self.metrics[name], name, **stated)

    def names(self) -> list[str]:
        """The names of its metrics as reported, without `/<class>` or `/<key>`."""
        return [f"{self.prefix}/{name}" if self.prefix else name for name in self.metrics]

    def info(self, name: str) -> MetricInfo | None:
        """Direction and unit of a reported number; none if no metric here reports it."""
        for reported, info in zip(self.names(), self._info.values(), strict=True):
            if name == reported or name.startswith(f"{reported}/"):
                return replace(info, name=name)
        return None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps a batch of predictions, or their digests."""
        for sample in data_samples:
            preds, target = _cpu(sample["preds"]), _cpu(sample["target"])
            kept = {
                name: metric.digest(preds, target) if isinstance(metric, own.PictureMetric) else (preds, target)
                for name, metric in self.metrics.items()
            }
            self.results.append(UserDict(kept))  # no dict, or mmengine would walk through all that is in it

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Computes all metrics over all samples."""
        values: dict[str, float] = {}
        for name, metric in self.metrics.items():
            kept = [result[name] for result in results]
            if isinstance(metric, own.PictureMetric):
                metric.absorb(kept)
            else:
                metric.reset()
                metric.update(*(_collate(list(part)) for part in zip(*kept, strict=True)))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* was called before the ``update`` method")  # absorb() did that
                values.update(self._flatten(name, metric.compute()))
        return values

    def _flatten(self, name: str, value: Any) -> dict[str, float]:
        """The numbers of a result by name; per-class results come as a tensor, or as a dict keyed by class index."""
        classes = (self.dataset_meta or {}).get("classes")
        if isinstance(value, torch.Tensor) and value.ndim == 0:
            return {name: value.item()}
        if isinstance(value, torch.Tensor) and value.ndim > 1:
            return {}  # a table, such as a confusion matrix: a matter for pictures
        if isinstance(value, torch.Tensor):
            if classes and len(classes) > len(value):
                raise ValueError(f"metric {name!r} gives {len(value)} numbers for {len(classes)} classes")
            value = dict(enumerate(value))
        values: dict[str, float] = {}
        for key, part in value.items():
            # A network may know more classes than the data set has.
            known = classes is not None and isinstance(key, int) and key < len(classes)
            values.update(self._flatten(f"{name}/{classes[key] if classes and known else key}", part))
        return values


def _build(name: str, config: dict[str, Any]) -> torchmetrics.Metric:
    known = {key: value for module in _MODULES for key, value in vars(module).items() if isinstance(value, type)}
    known |= own.SCORES.module_dict
    kind = config.get("type")
    if kind not in known:
        raise ValueError(
            f"metric {name!r}: type must be a class of torchmetrics, got {kind!r}{did_you_mean(str(kind), known)} "
            f"(ours are {', '.join(own.SCORES.module_dict)})"
        )
    metric = build(known, config, f"metric {name!r}:")
    metric.distributed_available_fn = _alone
    return metric


def _alone() -> bool:
    """Disables synchronisation: one process computes over all samples."""
    return False


def _cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cpu(part) for key, part in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _collate(values: list[Any]) -> Any:
    return torch.stack(values) if values and isinstance(values[0], torch.Tensor) else values

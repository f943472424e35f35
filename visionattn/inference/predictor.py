"""Predicting on pictures, whatever the task."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from visionattn.checkpoints import build, read_weights
from visionattn.data import list_collate
from visionattn.data.images import read_image
from visionattn.data.pipeline import Pipeline
from visionattn.engine import load_config
from visionattn.tasks import Classifier, Detector, Segmentor, from_checkpoint
from visionattn.tasks._base import Task
from visionattn.utils.files import read_checkpoint
from visionattn.utils.locate import find_checkpoint, locate
from visionattn.utils.published import Facts, find_published

from .results import Classification, Detection, Prediction, Segmentation

__all__ = ["Predictor"]


class Predictor:
    """A trained network that takes picture files.

    Args:
        prepare: Turns an RGB picture `(H, W, 3)` uint8 into a sample: `inputs`, `(3, h, w)`, and `data_samples`.
        run: Turns a list of samples into the network's predictions.
        describe: Turns a picture's path and prediction into a result.
    """

    def __init__(
        self,
        prepare: Callable[[np.ndarray], dict[str, Any]],
        run: Callable[[list[dict[str, Any]]], Sequence[Any]],
        describe: Callable[[Path, Any], Prediction],
    ) -> None:
        self.prepare = prepare
        self.run = run
        self.describe = describe

    @classmethod
    def from_name(cls, name: str, device: str | torch.device = "cpu", **options: Any) -> "Predictor":
        """A published checkpoint of any task, or any classifier of timm's.

        Args:
            name: A name such as `va_resnet10n_cbam.digits` or `resnet50`, a published file, or `hf-hub:ORG/NAME`.
            device: Where to compute.
            **options: As for `from_config`.

        Raises:
            FileNotFoundError: If there is no such file, or it can't be downloaded.
            ValueError: If there is none of this name, or the file does not say what it is.
        """
        facts = _facts(name)
        if facts and ("pipeline" in facts or facts["task"] != "classification"):
            task, facts = from_checkpoint(name, device)
            classes, colours = facts["input"]["label_names"], facts.get("palette")
            return cls._of_task(task, facts.get("pipeline", []), classes, colours=colours, **options)
        model = (build(name) if facts else timm.create_model(name, pretrained=True)).eval().to(device)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

        def prepare(image: np.ndarray) -> dict[str, Any]:
            return {"inputs": transform(Image.fromarray(image)), "data_samples": {}}

        def run(samples: list[dict[str, Any]]) -> torch.Tensor:
            return model(torch.stack([sample["inputs"] for sample in samples]).to(device)).float().softmax(-1)

        classes = model.pretrained_cfg.get("label_names") or list(map(str, range(model.num_classes)))
        return cls(prepare, run, _describer(Classifier, classes, **options))

    @classmethod
    def from_config(
        cls,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | torch.device = "cpu",
        classes: Sequence[str] | None = None,
        **options: Any,
    ) -> "Predictor":
        """The network of a config, with the weights of a training checkpoint or a published one.

        Args:
            config: A config, its path or its packaged name.
            checkpoint: The weights: a file or a name.
            device: Where to compute.
            classes: Names of the classes; without it those in the checkpoint, or else their numbers.
            **options: `topk` for classification, `score` for detection.

        Raises:
            FileNotFoundError: If either is missing.
            ValueError: If the weights are damaged or do not fit.
        """
        cfg = config if isinstance(config, Config) else load_config(config)
        model = {**cfg.model, "data_preprocessor": cfg.get("data_preprocessor")}
        model["backbone"] = {**model["backbone"], "pretrained": False}  # all weights are in the checkpoint
        task = MODELS.build(model)
        path, facts = locate(checkpoint)
        task.load_weights(read_weights(path))
        task.eval().to(device)
        meta = read_checkpoint(path).get("meta", {}).get("dataset_meta", {}) if facts is None else {}
        classes = classes or (facts["input"]["label_names"] if facts else meta.get("classes"))
        return cls._of_task(task, cfg.test_dataloader.dataset.pipeline, classes, colours=meta.get("palette"), **options)

    @classmethod
    def _of_task(
        cls, task: Task, pipeline: Sequence[dict[str, Any]], classes: Sequence[str] | None, **options: Any
    ) -> "Predictor":
        chain = Pipeline(pipeline)

        def prepare(image: np.ndarray) -> dict[str, Any]:
            inputs, size = chain(image), image.shape[:2]
            sample = {"size": tuple(inputs.shape[1:]), "original": {"size": size}, "original_size": size}
            return {"inputs": inputs, "data_samples": sample}

        def run(samples: list[dict[str, Any]]) -> Sequence[Any]:
            batch = task.data_preprocessor(list_collate(samples))
            if isinstance(task, Classifier):
                return task(batch["inputs"]).float().softmax(-1)
            return [result["preds"] for result in task(**batch, mode="predict")]

        classes = classes or list(map(str, range(task.num_classes)))
        return cls(prepare, run, _describer(type(task), classes, **options))

    def __call__(self, paths: Sequence[Path], batch_size: int = 1, num_workers: int = 0) -> Iterator[Prediction]:
        """Predicts for the pictures one after the other, in their order.

        Args:
            paths: Files.
            batch_size: Pictures a forward pass; for classification all of one batch must be prepared to one size.
            num_workers: Processes that read pictures.

        Raises:
            ValueError: If a file is no readable picture.
        """
        loader = DataLoader(_Pictures(paths, self.prepare), batch_size, num_workers=num_workers, collate_fn=list)
        for index, samples in enumerate(loader):
            with torch.inference_mode():
                predictions = self.run(samples)
            for path, prediction in zip(paths[index * batch_size :], predictions, strict=False):
                yield self.describe(path, prediction)


def _facts(name: str) -> Facts | None:
    """What is known of a checkpoint by its name or file; nothing of a network that timm alone knows."""
    is_timms = timm.is_model(name) and not (name.startswith("va_") and "." in name)
    if is_timms and find_published(name) is None:
        return None
    _, facts = find_checkpoint(name)
    if facts is None and not name.startswith("hf-hub:"):
        raise ValueError(
            f"{name} does not say of which network it is; give its config: --config CONFIG --checkpoint FILE"
        )
    return facts


class _Pictures(Dataset):
    def __init__(self, paths: Sequence[Path], prepare: Callable[[np.ndarray], dict[str, Any]]) -> None:
        self.paths = paths
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.prepare(read_image(self.paths[index]))


def _describer(
    task: type[nn.Module],
    classes: Sequence[str],
    *,
    colours: Sequence[tuple[int, int, int]] | None = None,
    topk: int = 5,
    score: float = 0.5,
) -> Callable[[Path, Any], Prediction]:
    def detection(path: Path, found: dict[str, torch.Tensor]) -> Detection:
        kept = found["scores"] >= score
        found = {name: value[kept].cpu().numpy() for name, value in found.items()}
        return Detection(path, found["boxes"], found["labels"], found["scores"], found.get("masks"), classes)

    def segmentation(path: Path, labels: torch.Tensor) -> Segmentation:
        return Segmentation(path, labels.cpu().numpy(), classes, colours)

    def classification(path: Path, probabilities: torch.Tensor) -> Classification:
        scores, numbers = probabilities.sort(descending=True)
        labels = tuple(classes[number] for number in numbers[:topk].tolist())
        return Classification(path, labels, tuple(scores[:topk].tolist()))

    return {Detector: detection, Segmentor: segmentation, Classifier: classification}[task]

"""Predicting on pictures with a registered network or with a config and its checkpoint."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from mmengine.registry import MODELS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ._files import read_checkpoint, replacing
from .checkpoints import read_weights
from .data.images import IMAGE_SUFFIXES, read_image
from .data.pipeline import Pipeline
from .engine import load_config

__all__ = ["Classification", "ImageClassifier", "find_images", "save_classifications"]


@dataclass(frozen=True)
class Classification:
    """What a network says of one picture.

    Args:
        path: The picture.
        labels: Names of the most probable classes, best first.
        scores: Their probabilities.
    """

    path: Path
    labels: tuple[str, ...]
    scores: tuple[float, ...]


class ImageClassifier:
    """Classifies pictures.

    Args:
        model: Network in evaluation mode, on the device to use: `(B, 3, H, W)` -> logits.
        prepare: Turns an RGB picture `(H, W, 3)` uint8 into the `(3, H, W)` float tensor the network takes.
        classes: Names of the classes; their numbers without it.
    """

    def __init__(
        self, model: nn.Module, prepare: Callable[[np.ndarray], torch.Tensor], classes: Sequence[str] | None
    ) -> None:
        self.model = model
        self.prepare = prepare
        self.classes = classes

    @classmethod
    def from_name(cls, name: str, device: str | torch.device = "cpu") -> "ImageClassifier":
        """A registered network with its weights, such as `va_resnet10n_cbam.digits`."""
        model = timm.create_model(name, pretrained=True).eval().to(device)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        return cls(model, lambda image: transform(Image.fromarray(image)), model.pretrained_cfg.get("label_names"))

    @classmethod
    def from_config(
        cls, config: str | Path, checkpoint: str | Path, device: str | torch.device = "cpu"
    ) -> "ImageClassifier":
        """The network of a config, with the weights of a training checkpoint or a published file.

        Raises:
            FileNotFoundError: If either is missing.
            ValueError: If the weights are damaged or do not fit.
        """
        cfg = load_config(config)
        cfg.model.data_preprocessor = cfg.get("data_preprocessor")
        task = MODELS.build(cfg.model)
        task.load_weights(read_weights(checkpoint))
        task.eval().to(device)
        pipeline = Pipeline(cfg.test_dataloader.dataset.pipeline)
        meta = read_checkpoint(checkpoint).get("meta", {})

        def prepare(image: np.ndarray) -> torch.Tensor:
            return task.data_preprocessor({"inputs": pipeline(image)[None]})["inputs"][0]

        return cls(task.backbone, prepare, meta.get("dataset_meta", {}).get("classes"))

    def __call__(
        self, paths: Sequence[Path], topk: int = 5, batch_size: int = 32, num_workers: int = 0
    ) -> Iterator[Classification]:
        """Classifies the pictures one after the other, in their order.

        Args:
            paths: Files.
            topk: How many classes to tell.
            batch_size: Pictures a forward pass; all of one batch must come out of `prepare` in one size.
            num_workers: Processes that read pictures.

        Raises:
            ValueError: If a file is no readable picture.
        """
        device = next(self.model.parameters()).device
        loader = DataLoader(_Pictures(paths, self.prepare), batch_size, num_workers=num_workers)
        for index, batch in enumerate(loader):
            with torch.inference_mode():
                scores, numbers = self.model(batch.to(device)).float().softmax(-1).sort(-1, descending=True)
            for path, row, order in zip(paths[index * batch_size :], scores.tolist(), numbers.tolist(), strict=False):
                labels = tuple(self.classes[n] if self.classes else str(n) for n in order[:topk])
                yield Classification(path, labels, tuple(row[:topk]))


class _Pictures(Dataset):
    def __init__(self, paths: Sequence[Path], prepare: Callable[[np.ndarray], torch.Tensor]) -> None:
        self.paths = paths
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.prepare(read_image(self.paths[index]))


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The pictures among files and in folders, folders searched through and sorted.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If there are none.
    """
    found: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no file or folder {path}")
    if not found:
        raise ValueError(f"no images in {', '.join(map(str, inputs))} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return found


def save_classifications(results: Sequence[Classification], folder: Path) -> None:
    """Writes `predictions.csv` and every picture with its best classes beneath.

    Args:
        results: What was predicted.
        folder: A new folder; it appears when all is written.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        with (temporary / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            count = len(results[0].labels)
            writer.writerow(["image", *(f"{what}_{k}" for k in range(1, count + 1) for what in ("label", "score"))])
            for result in results:
                pairs = zip(result.labels, result.scores, strict=True)
                writer.writerow([result.path, *(cell for label, score in pairs for cell in (label, f"{score:.6f}"))])
        for number, result in enumerate(results):
            picture = _annotate(cv2.cvtColor(read_image(result.path), cv2.COLOR_RGB2BGR), result)
            cv2.imwrite(str(temporary / f"{number:05d}_{result.path.stem}.png"), picture)


def _annotate(image: np.ndarray, result: Classification, width: int = 320, lines: int = 3) -> np.ndarray:
    scale = max(width / image.shape[1], 1.0)
    interpolation = cv2.INTER_NEAREST if scale >= 4 else cv2.INTER_LINEAR
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)
    shown = list(zip(result.labels, result.scores, strict=True))[:lines]
    panel = np.full((24 * len(shown) + 8, image.shape[1], 3), 255, np.uint8)
    for row, (label, score) in enumerate(shown):
        top = 24 * row + 6
        cv2.rectangle(panel, (4, top), (4 + round((image.shape[1] - 8) * score), top + 20), (235, 206, 135), cv2.FILLED)
        text = f"{label}  {100 * score:.1f} %"
        cv2.putText(panel, text, (10, top + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return np.vstack([image, panel])

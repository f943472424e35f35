"""Our COCO scores against the bare evaluator, faster-coco-eval, on generated objects.

python -m visionattn.benchmark.scoring [--images 500] [--classes 20] [--objects 7] [--detections 30] [--rounds 7]
"""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from .rows import Unequal
from .timing import one_thread, quantiles

__all__ = ["KINDS", "main", "make_scenes", "measure"]

# Contents of a row -> types of IoU.
KINDS: dict[str, tuple[str, ...]] = {"boxes": ("bbox",), "masks": ("segm",), "boxes and masks": ("bbox", "segm")}
NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
_HEIGHT, _WIDTH = 120, 160
Scene = dict[str, dict[str, torch.Tensor]]


def make_scenes(
    images: int = 500, classes: int = 20, objects: int = 7, detections: int = 30, seed: int = 0
) -> list[Scene]:
    """Predictions and targets of pictures of 120x160 pixels: ellipses, one in twenty a crowd, some pictures empty.

    Args:
        images: Pictures.
        classes: Classes of objects.
        objects: An image, on average; from none to twice as many.
        detections: An image, near its objects, four of five of their class; one picture in twenty has none.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(images):
        n, m = int(rng.integers(2 * objects + 1)), detections * int(rng.random() >= 0.05)
        corners = rng.uniform(0, (_WIDTH - 20, _HEIGHT - 20), (n, 2))
        boxes = np.hstack([corners, corners + rng.uniform(6, 70, (n, 2))])
        labels = rng.integers(0, classes, n)
        target = _describe(boxes, labels) | {"iscrowd": torch.from_numpy(rng.random(n) < 0.05)}
        target["area"] = target["masks"].sum((1, 2)).double()
        near = rng.integers(0, max(n, 1), m)
        found = np.append(boxes, [[10, 10, 40, 30]], axis=0)[near] + rng.normal(0, 5, (m, 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        guesses = np.where(rng.random(m) < 0.8, np.append(labels, 0)[near], rng.integers(0, classes, m))
        preds = _describe(found, guesses) | {"scores": torch.from_numpy(rng.random(m).astype(np.float32))}
        scenes.append({"preds": preds, "target": target})
    return scenes


def _describe(boxes: np.ndarray, labels: np.ndarray) -> dict[str, torch.Tensor]:
    rows, columns = (edges + 0.5 for edges in np.ogrid[:_HEIGHT, :_WIDTH])
    boxes = boxes.clip(0, (_WIDTH, _HEIGHT, _WIDTH, _HEIGHT))
    left, top, right, bottom = boxes.T[..., None, None]
    across = (2 * columns - left - right) / np.maximum(right - left, 1)
    down = (2 * rows - top - bottom) / np.maximum(bottom - top, 1)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.from_numpy(labels),
        "masks": torch.from_numpy(across**2 + down**2 <= 1),
    }


def measure(kinds: Sequence[str], scenes: Sequence[Scene], classes: int = 20, rounds: int = 7) -> dict[str, float]:
    """Time from kept predictions to scores, with the bare evaluator's from records in memory, in turns.

    The CPU time of all threads counts: the evaluator compares masks in threads of its own.

    Args:
        kinds: Types of IoU, of `bbox` and `segm`.
        scenes: As of `make_scenes`.
        classes: Classes of objects.
        rounds: In each of which both take a turn.

    Returns:
        `ours` and `bare` in seconds and `ratio`, medians.

    Raises:
        visionattn.benchmark.Unequal: If the scores differ by more than 1e-6.
    """
    from visionattn.engine import TorchMetrics

    metric = TorchMetrics({kind: {"type": "DetectionScores", "iou_type": kind} for kind in kinds})
    metric.process(None, scenes)
    kept = list(metric.results)
    records = {kind: _records(scenes, kind, classes) for kind in kinds}

    def ours() -> Callable[[], Any]:
        metric.results[:] = kept
        return partial(metric.evaluate, len(kept))

    def bare() -> Callable[[], Any]:
        # The evaluator writes into what it gets.
        fresh = {kind: ([dict(r) for r in truth], [dict(r) for r in found]) for kind, (truth, found) in records.items()}
        return lambda: {kind: _evaluate(*fresh[kind], kind, len(scenes), classes) for kind in fresh}

    values, expected = ours()(), bare()()
    for kind, stats in expected.items():
        for name, stat in zip(NAMES, stats, strict=False):
            value = values[f"{kind}/{name}"]
            if abs(value - stat) > 1e-6 and stat >= 0:
                raise Unequal(f"{kind}/{name} is {value}, but the bare evaluator says {stat}")
    times = []
    with one_thread():
        for number in range(rounds):
            times.append([0.0, 0.0])
            for at in (number % 2, 1 - number % 2):
                run = (ours, bare)[at]()
                gc.collect()  # what came before is not to be collected on the clock
                started = time.process_time()
                run()
                times[-1][at] = time.process_time() - started
    medians = [quantiles(column)["p50"] for column in zip(*times, strict=True)]
    return {"ours": medians[0], "bare": medians[1], "ratio": quantiles([a / b for a, b in times])["p50"]}


def _records(scenes: Sequence[Scene], kind: str, classes: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """True and found objects as COCO's annotations and results."""
    from faster_coco_eval.core import mask

    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for image, scene in enumerate(scenes):
        for records, part in zip(sides, (scene["target"], scene["preds"]), strict=True):
            corners = part["boxes"]
            boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
            for place, label in enumerate(part["labels"].tolist()):
                record: dict[str, Any] = {"image_id": image, "category_id": label}
                if kind == "bbox":
                    record["bbox"] = boxes[place]
                else:
                    record["segmentation"] = mask.encode(np.asfortranarray(part["masks"][place].numpy()))
                if "scores" in part:
                    record["score"] = part["scores"][place].item()
                else:
                    record |= {"id": len(records) + 1, "iscrowd": int(part["iscrowd"][place])}
                    record["area"] = part["area"][place].item()
                records.append(record)
    return sides


def _evaluate(
    truth: list[dict[str, Any]], found: list[dict[str, Any]], kind: str, images: int, classes: int
) -> Sequence[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    pictures = [{"id": number, "height": _HEIGHT, "width": _WIDTH} for number in range(images)]
    categories = [{"id": number, "name": str(number)} for number in range(classes)]
    data = COCO({"images": pictures, "annotations": truth, "categories": categories})
    evaluator = COCOeval_faster(data, data.loadRes(found), kind)
    evaluator.run()
    stats: Sequence[float] = evaluator.stats
    return stats


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints our time over the bare evaluator's."""
    parser = argparse.ArgumentParser(prog="python -m visionattn.benchmark.scoring", description=main.__doc__)
    for name, value in {"images": 500, "classes": 20, "objects": 7, "detections": 30, "rounds": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    options = parser.parse_args(arguments)
    scenes = make_scenes(options.images, options.classes, options.objects, options.detections)
    print("| objects | ours, s | bare evaluator, s | ours / bare |\n|---|---|---|---|")
    for name, kinds in KINDS.items():
        row = measure(kinds, scenes, options.classes, options.rounds)
        print(f"| {name} | {row['ours']:.3f} | {row['bare']:.3f} | {row['ratio']:.2f} |", flush=True)


if __name__ == "__main__":
    main()

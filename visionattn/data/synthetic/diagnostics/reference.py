"""Reference solutions: what is right for who knows every place and reads the pixels there, the ceiling of a task.

Objects are read by a support vector machine that was fitted to all training pictures of their kind. A solution gets
scenes and places but no labels. Of scenes whose test is a change (corruption), it reads those without the change.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np

from .pictures import DIGITS, load_pictures
from .scenes import MARK, Scenes
from .tasks import TASKS

__all__ = ["solve"]

_SIDE = 12


def solve(task: str, count: int, *, size: int = 32, source: str = "digits", seed: int = 0, **harder: Any) -> np.ndarray:
    """Which of the first test scenes of a task its reference solution answers correctly, `(count,)` of booleans.

    Args:
        task: A name in `TASKS`.
        count: How many scenes.
        size: As in `Task.make`.
        source: As there.
        seed: As there.
        **harder: As there.
    """
    unchanged = {"severity": 0.0} if "severity" in TASKS[task].difficulty else {}
    parts = TASKS[task].make("test", count, size=size, source=source, seed=seed, **{**harder, **unchanged})
    answers = {"same": _same, "count": _count, "neighbour": _neighbour, "long way": _long_way}
    return np.concatenate([answers.get(task, _first)(part, source, task) == part.labels for part in parts])


def _first(scenes: Scenes, source: str, task: str) -> np.ndarray:
    """The class of the first place."""
    kind = "clothes" if task == "few examples" and source != "digits" else "digits"
    return _read(scenes, kind)[:, 0] % 10


def _neighbour(scenes: Scenes, source: str, task: str) -> np.ndarray:
    """Finds what looks most like a 5 and has an object on its left, and reads that one."""
    columns = TASKS[task].difficulty["columns"]
    likely = _likelihood(scenes, "digits")  # (N, K, 10)
    fives = likely[..., 5].reshape(len(scenes), -1, columns)
    fives[..., 0] = -np.inf
    at = fives.reshape(len(scenes), -1).argmax(1)
    left = likely[np.arange(len(scenes)), at - 1]
    left[:, 5] = -np.inf
    return left.argmax(1)


def _same(scenes: Scenes, source: str, task: str) -> np.ndarray:
    """Reads both among all classes."""
    read = _read(scenes, "digits" if source == "digits" else "all")
    return (read[:, 0] == read[:, 1]).astype(int)


def _count(scenes: Scenes, source: str, task: str) -> np.ndarray:
    """Reads all, and counts those like the first, which is one of the few classes that are asked for."""
    likely = _likelihood(scenes, "digits")
    asked = likely[:, 0, : TASKS[task].difficulty["kinds"]].argmax(-1)
    return (likely[:, 1:].argmax(-1) == asked[:, None]).sum(1)


def _long_way(scenes: Scenes, source: str, task: str) -> np.ndarray:
    """Fills the ink from one mark: does it reach the other?"""
    answers = []
    for image, places in zip(scenes.images, scenes.places, strict=True):
        ink = (image.max(-1) > 100) | (image == MARK).all(-1)
        _, parts = cv2.connectedComponents(ink.astype(np.uint8), connectivity=8)
        first, second = (parts[top + side // 2, left + side // 2] for left, top, side in places)
        answers.append(int(first == second))
    return np.array(answers)


def _read(scenes: Scenes, kind: str) -> np.ndarray:
    """Classes of the objects, `(N, K)`."""
    likely = _likelihood(scenes, kind)
    return _reader(kind).classes_[likely.argmax(-1)]


def _likelihood(scenes: Scenes, kind: str) -> np.ndarray:
    """How much each object looks like each class, `(N, K, classes)`."""
    crops = []
    for image, places in zip(scenes.images, scenes.places, strict=True):
        grey = image.max(-1).astype(np.float32)
        for left, top, side in places:
            crops.append(_normalised(grey[top : top + side, left : left + side]))
    found = _reader(kind).decision_function(np.stack(crops))
    return found.reshape(*scenes.places.shape[:2], -1)


def _normalised(crop: np.ndarray) -> np.ndarray:
    """A picture at one size and brightness, in a row."""
    crop = cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
    return (crop / max(float(np.percentile(crop, 98)), 1e-3)).clip(0, 1).ravel()


@cache
def _reader(kind: str) -> Any:
    """What reads objects: fitted to training pictures in the sizes of the tasks."""
    from sklearn.svm import SVC

    features, classes = [], []
    for side in (10, 12) if kind != "clothes" else (24,):
        pictures = load_pictures("train", side, "digits" if kind == "digits" else "digits+fashion")
        pictures = {"digits": pictures.of(*DIGITS), "clothes": pictures.of(*range(10, 20)), "all": pictures}[kind]
        features += [_normalised(ink) for ink in pictures.ink]
        classes.append(pictures.classes)
    return SVC(C=10).fit(np.stack(features), np.concatenate(classes))

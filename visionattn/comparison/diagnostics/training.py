"""One training of the diagnostics: a network learns a task and is tested on that and those that share its networks."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.data.synthetic.diagnostics import TASKS, VERSION, Scenes, Task
from visionattn.utils.files import replacing

from .recipe import Recipe
from .rows import Row

__all__ = ["DATA_SEED", "Outcome", "evaluate", "fit", "load_scenes", "to_inputs", "train"]

DATA_SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What a training tells.

    Args:
        hits: For each task that was tested, which of its test scenes are right, `(scenes,)` of booleans.
        losses: The mean training loss of each twentieth of the steps.
        train_seconds: Processor time of the steps.
        test_seconds: Processor time of the task's own test scenes.
    """

    hits: dict[str, np.ndarray]
    losses: np.ndarray
    train_seconds: float
    test_seconds: float


def train(row: Row, task: Task, seed: int, recipe: Recipe, source: str, folder: Path) -> tuple[nn.Module, Outcome]:
    """Trains the network of a row on a task and tests it.

    Everything is drawn from the seed, so that a second training on one thread gives the same.

    Args:
        row: The row.
        task: A task that has networks of its own.
        seed: Of weights, order and dropout; the scenes are the same for all.
        recipe: The settings.
        source: A name in `SOURCES` of the scenes.
        folder: Where generated scenes are kept.

    Returns:
        The trained network and what it got right.
    """
    torch.manual_seed(seed)
    model = row.build(recipe, task.classes).to(recipe.device).to(memory_format=torch.channels_last)
    (scenes,) = load_scenes(task, "train", row.host, recipe, source, folder)
    started = time.process_time()
    with _tiny_as_zero():
        losses = fit(model, scenes, recipe, recipe.effort(row.host, task.name).steps, recipe.rates[row.host], seed)
    train_seconds = time.process_time() - started
    hits, seconds = {}, {}
    for tested in recipe.tested(task):
        started = time.process_time()
        scenes_of_sizes = load_scenes(tested, "test", row.host, recipe, source, folder)
        hits[tested.name] = np.concatenate([evaluate(model, part, recipe) for part in scenes_of_sizes])
        seconds[tested.name] = time.process_time() - started
    return model, Outcome(hits, losses, train_seconds, seconds[task.name])


def fit(model: nn.Module, scenes: Scenes, recipe: Recipe, steps: int, rate: float, seed: int) -> np.ndarray:
    """Trains by AdamW and one cycle of the learning rate; returns the mean loss of each twentieth of the steps.

    All networks of a seed meet the scenes in one order, however many random numbers their weights took.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    generator, passes = torch.Generator().manual_seed(seed), -(-steps * recipe.batch // len(scenes))
    order = torch.cat([torch.randperm(len(scenes), generator=generator) for _ in range(passes)])
    labels = torch.from_numpy(scenes.labels)
    losses = []
    model.train()
    for numbers in order[: steps * recipe.batch].split(recipe.batch):
        logits = model(to_inputs(scenes.images[numbers.numpy()], recipe.device))
        loss = F.cross_entropy(logits, labels[numbers].to(recipe.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return np.array([float(part.mean()) for part in torch.stack(losses).tensor_split(20) if len(part)], np.float32)


@contextmanager
def _tiny_as_zero() -> Iterator[None]:
    """Takes numbers below 1e-38 as zero: what is learnt well has such gradients, and some CPUs are slow at them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@torch.no_grad()
def evaluate(model: nn.Module, scenes: Scenes, recipe: Recipe) -> np.ndarray:
    """Which scenes the network answers correctly, `(N,)` of booleans."""
    model.eval()
    found = [
        model(to_inputs(scenes.images[start : start + 100], recipe.device)).argmax(1).cpu().numpy()
        for start in range(0, len(scenes), 100)
    ]
    return np.concatenate(found) == scenes.labels


def to_inputs(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """`(B, H, W, 3)` bytes as `(B, 3, H, W)` around zero."""
    return (torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() - 64) / 64


def load_scenes(task: Task, split: str, host: str, recipe: Recipe, source: str, folder: Path) -> list[Scenes]:
    """The scenes of a task for a host, generated once and kept in a folder; several of different sizes in turn."""
    count = recipe.train if split == "train" else recipe.test_scenes(host, task.name)
    facts = f"{VERSION} {recipe.size} {count} {source} {sorted(task.difficulty.items())}"
    key = f"{task.name.replace(' ', '-')}-{split}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
    return _load(folder / f"{key}.npz", task.name, split, count, recipe.size, source)


@cache
def _load(path: Path, task: str, split: str, count: int, size: int, source: str) -> list[Scenes]:
    names = ("images", "labels", "evidence", "places")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = TASKS[task].make(split, count, size=size, source=source, seed=DATA_SEED)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{f"{n}{at}": getattr(part, n) for at, part in enumerate(made) for n in names})
        return made
    with np.load(path, allow_pickle=False) as kept:
        return [Scenes(*(kept[f"{n}{at}"] for n in names)) for at in range(len(kept.files) // len(names))]

"""How large a run of the diagnostics is: scenes, networks, steps and seeds of each scale."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from visionattn.data.synthetic.diagnostics import TASKS, VERSION, Task

__all__ = ["RECIPES", "Effort", "Recipe"]


@dataclass(frozen=True)
class Effort:
    """How long and how often the networks of a task are trained.

    Args:
        steps: Training steps: so many that networks which can learn the task have learnt it with every seed, since what
            is learnt half differs most between seeds.
        seeds: How many seeds each row needs for a difference of 1.5 points to be told, by the spread between them.
        test: Test scenes, where rows differ on so many that the recipe's would take several times the seeds.
    """

    steps: int
    seeds: int
    test: int | None = None


@dataclass(frozen=True)
class Recipe:
    """The settings that all rows of a run share.

    Args:
        size: Side of the training scenes in pixels.
        train: Training scenes of a task, each of which a network meets `steps * batch / train` times.
        test: Test scenes of a task, where its effort names no other number.
        batch: Scenes of a step.
        efforts: For each host how its networks are trained on each task; those that are not named take what `""` has.
        rates: Highest learning rate of AdamW, in one cycle, of each host: all rows of a host share it.
        decay: Weight decay.
        cnn: Arguments of `timm.create_model` for the plug-ins' network.
        pyramid: Arguments of the pyramid, which most mixers stand in.
        columnar: Arguments of the plain transformer, which mixers stand in that have no pyramid.
        device: Where to compute, `cpu` or `cuda`.
        tasks: Names of the tasks.
        seeds: Seeds of each row in place of the first ones that the efforts count.
    """

    size: int
    train: int
    test: int
    batch: int
    efforts: Mapping[str, Mapping[str, Effort]]
    cnn: Mapping[str, Any]
    pyramid: Mapping[str, Any]
    columnar: Mapping[str, Any]
    rates: Mapping[str, float]
    decay: float = 0.02
    device: str = "cpu"
    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: tuple[int, ...] = ()

    @property
    def trained(self) -> list[Task]:
        """The tasks that have networks of their own."""
        return [task for task in map(TASKS.__getitem__, self.tasks) if task.trained_on is None]

    def tested(self, task: Task) -> list[Task]:
        """The tasks that the networks of a task are tested on."""
        return [one for one in map(TASKS.__getitem__, self.tasks) if task.name in (one.name, one.trained_on)]

    def effort(self, host: str, task: str) -> Effort:
        """How long and how often a host's networks are trained on a task, or on the one whose networks answer it."""
        own = self.efforts[host]
        return own.get(TASKS[task].trained_on or task, own[""])

    def seeds_of(self, host: str, task: str) -> tuple[int, ...]:
        """The seeds of each row of a host on a task."""
        return self.seeds or tuple(range(self.effort(host, task).seeds))

    def test_scenes(self, host: str, task: str) -> int:
        """How many scenes the rows of a host are tested on."""
        return self.effort(host, task).test or self.test

    def digest(self, source: str, host: str, task: str) -> str:
        """What tells records of other settings apart: all that a result on a task follows from but row and seed."""
        trained_on = TASKS[task].trained_on or task
        facts = {name: getattr(self, name) for name in ("size", "train", "batch", "decay", "device")}
        facts |= {"test": self.test_scenes(host, task), "network": dict(getattr(self, host)), "rate": self.rates[host]}
        facts |= {"steps": self.effort(host, task).steps, "source": source, "scenes": VERSION}
        facts["difficulty"] = {name: dict(TASKS[name].difficulty) for name in (trained_on, task)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


# What a CNN learns in 400 steps takes mixers up to four times as many.
_MIXERS = {
    "": Effort(250, 3),
    "clutter": Effort(600, 3),
    "pointer": Effort(800, 3),
    "neighbour": Effort(600, 3),
    "long way": Effort(800, 3),
}
_SMALL = Recipe(
    size=32,
    train=20_000,
    test=5_000,
    batch=64,
    efforts={
        "cnn": {
            "": Effort(250, 3),
            "clutter": Effort(400, 4),
            "pointer": Effort(400, 3),
            "neighbour": Effort(500, 3),
            "long way": Effort(500, 3),
        },
        "pyramid": {
            **_MIXERS,
            "clutter": Effort(600, 4),
            "pointer": Effort(1_500, 3),
            "few examples": Effort(250, 15, test=20_000),
        },
        "columnar": {**_MIXERS, "long way": Effort(1_200, 3)},
    },
    # The last stages keep 8x8 positions: with fewer the network learns little in so few steps.
    cnn={"model_name": "va_resnet10n", "channels": (16, 32, 48, 48), "output_stride": 8},
    pyramid={"dims": (32, 64), "depths": (1, 1), "num_heads": (2, 4), "mlp_ratios": (2, 2), "stem_strides": (2, 2)},
    columnar={"dim": 48, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    # Higher than is usual, as steps are few; transformers do not bear the CNN's.
    rates={"cnn": 8e-3, "pyramid": 4e-3, "columnar": 4e-3},
    # In so few steps the plain network does not leave chance at *same*.
    tasks=tuple(name for name in TASKS if name != "same"),
)
RECIPES = {
    "small": _SMALL,
    "smoke": replace(_SMALL, train=256, test=120, efforts={host: {"": Effort(4, 2)} for host in _SMALL.efforts}),
    "large": Recipe(
        size=64,
        train=400_000,
        test=20_000,
        batch=512,
        efforts={host: {"": Effort(8_000, 10)} for host in _SMALL.efforts},
        cnn={"model_name": "va_resnet18n", "channels": (64, 128, 256, 512), "stem_width": 32, "output_stride": 16},
        pyramid={"dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16)}
        | {"stem_strides": (2, 2)},
        columnar={"dim": 192, "depth": 12, "num_heads": 3, "patch_size": 4},
        rates={"cnn": 2e-3, "pyramid": 1e-3, "columnar": 1e-3},
        decay=0.05,
        device="cuda",
    ),
}

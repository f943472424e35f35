"""How large a run of the diagnostics is: scenes, networks, steps and seeds of each scale."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from visionattn.data.synthetic.diagnostics import TASKS, VERSION, Task

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """The settings that all rows of a run share.

    Args:
        size: Side of the training scenes in pixels.
        train: Training scenes of a task, each of which a network meets `steps * batch / train` times.
        test: Test scenes of a task.
        batch: Scenes of a step.
        steps: Training steps.
        rates: Highest learning rate of AdamW, in one cycle, of each host: all rows of a host share it.
        decay: Weight decay.
        seeds: Seeds of each row.
        cnn: Arguments of `timm.create_model` for the plug-ins' network.
        pyramid: Arguments of the pyramid, which most mixers stand in.
        columnar: Arguments of the plain transformer, which mixers stand in that have no pyramid.
        device: Where to compute, `cpu` or `cuda`.
        tasks: Names of the tasks.
    """

    size: int
    train: int
    test: int
    batch: int
    steps: int
    seeds: tuple[int, ...]
    cnn: Mapping[str, Any]
    pyramid: Mapping[str, Any]
    columnar: Mapping[str, Any]
    rates: Mapping[str, float]
    decay: float = 0.02
    device: str = "cpu"
    tasks: tuple[str, ...] = tuple(TASKS)

    @property
    def trained(self) -> list[Task]:
        """The tasks that have networks of their own."""
        return [task for task in map(TASKS.__getitem__, self.tasks) if task.trained_on is None]

    def tested(self, task: Task) -> list[Task]:
        """The tasks that the networks of a task are tested on."""
        return [one for one in map(TASKS.__getitem__, self.tasks) if task.name in (one.name, one.trained_on)]

    def digest(self, source: str) -> str:
        """What tells records of other settings apart; seeds and the choice of tasks change no record."""
        facts = {**asdict(self), "seeds": None, "tasks": None, "source": source, "scenes": VERSION}
        facts["difficulty"] = {name: dict(task.difficulty) for name, task in TASKS.items()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


_SMALL = Recipe(
    size=32,
    train=20_000,
    test=5_000,
    batch=64,
    steps=250,
    seeds=(0, 1, 2),
    # The last stages keep 8x8 positions: with fewer the network learns little in so few steps.
    cnn={"model_name": "va_resnet10n", "channels": (16, 32, 48, 48), "output_stride": 8},
    pyramid={"dims": (32, 64), "depths": (1, 1), "num_heads": (2, 4), "mlp_ratios": (2, 2), "stem_strides": (2, 2)},
    columnar={"dim": 48, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    # Higher than is usual, as steps are few; transformers do not bear the CNN's.
    rates={"cnn": 8e-3, "pyramid": 4e-3, "columnar": 4e-3},
    # In so few steps the plain network does not leave chance at *same*, nor do the mixers at *long way*.
    tasks=tuple(name for name in TASKS if name not in ("same", "long way")),
)
RECIPES = {
    "small": _SMALL,
    "smoke": Recipe(
        **{**vars(_SMALL), "train": 256, "test": 120, "steps": 4, "seeds": (0, 1)},
    ),
    "large": Recipe(
        size=64,
        train=400_000,
        test=20_000,
        batch=512,
        steps=8_000,
        seeds=tuple(range(10)),
        cnn={"model_name": "va_resnet18n", "channels": (64, 128, 256, 512), "stem_width": 32, "output_stride": 16},
        pyramid={"dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16)}
        | {"stem_strides": (2, 2)},
        columnar={"dim": 192, "depth": 12, "num_heads": 3, "patch_size": 4},
        rates={"cnn": 2e-3, "pyramid": 1e-3, "columnar": 1e-3},
        decay=0.05,
        device="cuda",
    ),
}

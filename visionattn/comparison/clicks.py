"""Interactive segmentation with probabilistic attention: how far a few clicks spread.

python -m visionattn.comparison.clicks --seeds 0 1 2 --out docs/results/clicks.md
"""

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.data.synthetic.digits import digit_scene
from visionattn.mixers import ProbabilisticAttention
from visionattn.utils.files import replacing
from visionattn.visualization.curves import line_styles, new_figure, save_figure

__all__ = ["VARIANTS", "ClickSegmenter", "draw", "evaluate", "run", "scenes", "train", "write"]

# What happens to the clicks -> options of the attention.
VARIANTS = {
    "values spread": {"key_iters": 0},
    "values spread, keys adapt": {"key_iters": 1},
    "clicks left out": {"key_iters": 0, "value_iters": 0},
}
_SIZE = 40
_LEAST = 8  # pixels of a digit that is asked for, at half the size
Scenes = tuple[torch.Tensor, torch.Tensor]


class ClickSegmenter(nn.Module):
    """Finds the digit that was clicked on, at half the size of the picture.

    Convolutions make tokens, and known values of the attention say at which of them a user clicked in or beside the
    digit. Nothing else tells the network about the clicks.

    Args:
        dim: Width of the tokens.
        options: Of the attention.
    """

    def __init__(self, dim: int = 32, **options: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(5, dim, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
        )
        self.norm = nn.LayerNorm(dim)
        self.attn = ProbabilisticAttention(dim, num_heads=2, **{"value_theta": 0.01, **options})
        self.marks = nn.Embedding(2, dim)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, images: torch.Tensor, clicks: torch.Tensor) -> torch.Tensor:
        """Scores of the digit, `(B, H / 2, W / 2)`.

        Args:
            images: `(B, 3, H, W)`.
            clicks: 1 in the digit, -1 beside it, 0 where there was none, `(B, H / 2, W / 2)`.
        """
        rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(images), -1, -1, -1)
        x = self.stem(torch.cat((images, places), 1)).permute(0, 2, 3, 1)
        values = self.marks((clicks > 0).long())
        x = x + self.attn(self.norm(x), values, clicks != 0)
        return self.head(x).squeeze(-1)


@cache
def scenes(split: str, count: int, seed: int) -> Scenes:
    """Pictures of two or three digits, `(N, 3, H, W)`, and the mask of one of them, `(N, H / 2, W / 2)` bool."""
    images, targets = [], []
    for number in range(count):
        image, objects = digit_scene(split, _SIZE, (2, 3), (seed, split == "test", number))
        assert objects.masks is not None
        halved = F.avg_pool2d(torch.from_numpy(objects.masks.astype(np.float32)), 2) >= 0.5
        seen = halved[halved.sum((1, 2)) >= _LEAST]
        if len(seen):
            images.append(torch.from_numpy(image).permute(2, 0, 1).float() / 64 - 2)
            targets.append(seen[number % len(seen)])
    return torch.stack(images), torch.stack(targets)


def train(model: ClickSegmenter, data: Scenes, steps: int, generator: torch.Generator, batch: int = 16) -> None:
    """Trains with one to four clicks: the first in the digit, others in or beside it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.2)
    for _ in range(steps):
        numbers = torch.randint(len(data[0]), (batch,), generator=generator)
        images, target = (part[numbers] for part in data)
        clicks = _click(torch.zeros(target.shape), target, target, generator)
        for extra in range(1, 4):
            chosen = torch.rand(batch, 1, 1, generator=generator) < 0.5
            where = torch.where(chosen, target, ~target)
            asked = torch.randint(1, 5, (batch,), generator=generator) > extra
            clicks = torch.where(asked[:, None, None], _click(clicks, target, where, generator), clicks)
        scores = model(images, clicks)
        loss = F.binary_cross_entropy_with_logits(scores, target.float(), pos_weight=scores.new_tensor(3.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def evaluate(model: ClickSegmenter, data: Scenes, most: int, generator: torch.Generator) -> list[float]:
    """Mean IoU in % after 1, 2, ... clicks: the first in the digit, each other one where the result is wrong."""
    images, target = data
    clicks = _click(torch.zeros(target.shape), target, target, generator)
    found = []
    for _ in range(most):
        seen = torch.cat([model(*part) > 0 for part in zip(images.split(50), clicks.split(50), strict=True)])
        found.append(100 * ((seen & target).sum((1, 2)) / (seen | target).sum((1, 2))).mean().item())
        clicks = _click(clicks, target, seen != target, generator)
    return found


def _click(clicks: torch.Tensor, target: torch.Tensor, where: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The clicks and one more at a random place of each mask `where`, if it has any."""
    chances = torch.rand(where.shape, generator=generator) * where
    place = chances.flatten(1).argmax(1, keepdim=True)
    mark = torch.where(target, 1.0, -1.0).flatten(1).gather(1, place)
    mark = torch.where(where.flatten(1).any(1, keepdim=True), mark, clicks.flatten(1).gather(1, place))
    return clicks.flatten(1).scatter(1, place, mark).view_as(clicks)


def run(variant: str, seed: int, *, steps: int, count: int, tests: int, most: int) -> list[float]:
    """Trains a network on `count` scenes and gives the IoU in % after each click on `tests` others."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ClickSegmenter(**VARIANTS[variant])
    train(model, scenes("train", count, seed), steps, generator)
    return evaluate(model.eval(), scenes("test", tests, 0), most, generator)


def write(results: dict[str, list[list[float]]], out: Path, command: str) -> str:
    """Writes the mean over the seeds, and each seed's last IoU, as a table; returns it."""
    clicks = range(1, len(next(iter(results.values()))[0]) + 1)
    rows = [
        f"| clicks | {' | '.join(map(str, clicks))} | after the last, each seed |",
        "|---" * (len(clicks) + 2) + "|",
    ]
    for variant, runs in results.items():
        means = [f"{mean(one[click - 1] for one in runs):.1f}" for click in clicks]
        rows.append(f"| {variant} | {' | '.join(means)} | {', '.join(f'{one[-1]:.1f}' for one in runs)} |")
    picture = f"![IoU over the number of clicks]({out.with_suffix('.png').name})"
    text = "\n".join([_HEAD.format(command=command), *rows, "", picture, ""])
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def draw(results: dict[str, list[list[float]]], path: Path) -> None:
    """Draws IoU over the number of clicks, the mean and the range of the seeds, as a `.png` file."""
    figure = new_figure(6, 4.2, 90)
    axes = figure.subplots()
    for (variant, runs), style in zip(results.items(), line_styles(len(results)), strict=True):
        values = np.array(runs)
        clicks = np.arange(1, values.shape[1] + 1)
        axes.plot(clicks, values.mean(0), label=variant, **style)
        axes.fill_between(clicks, values.min(0), values.max(0), alpha=0.2, color=style.get("color"))
    axes.set(xlabel="clicks", ylabel="IoU in %, mean and range of the seeds")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


_HEAD = """# Clicks that spread: interactive segmentation with probabilistic attention

Two or three digits on a photograph; one of them is asked for by clicks, the first in the digit, each further one where
the result is wrong. The clicks reach a small network as known values of its one attention layer only. Mean IoU in % at
half the size of the pictures, on scenes whose digits and photographs are in no training scene.

    {command}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all seeds, writes the table and draws the picture beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--clicks", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("clicks.md"), help="the table; the picture lies beside it")
    options = parser.parse_args(arguments)
    results: dict[str, list[list[float]]] = {variant: [] for variant in VARIANTS}
    for seed in options.seeds:
        for variant in VARIANTS:
            sizes = {"steps": options.steps, "count": options.scenes, "tests": options.tests, "most": options.clicks}
            results[variant].append(run(variant, seed, **sizes))
            print(variant, seed, [round(value, 1) for value in results[variant][-1]], flush=True)
    settings = f"--steps {options.steps} --scenes {options.scenes} --tests {options.tests} --clicks {options.clicks}"
    command = f"python -m visionattn.comparison.clicks --seeds {' '.join(map(str, options.seeds))} {settings}"
    print(write(results, options.out, f"{command} --out {options.out}"))
    draw(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

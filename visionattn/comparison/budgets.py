"""Sparse attention in a trained vision transformer, without and with training: accuracy against pairs computed.

python -m visionattn.comparison.budgets --seeds 0 1 2 --out docs/results/budgets.md
"""

import argparse
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.data.fashion_mnist import FashionMNIST
from visionattn.mixers import SparsifinerAttention, replace_attention
from visionattn.models.families.va_vit import vit
from visionattn.ops import Blocks, pair_mask
from visionattn.ops.losses import collect_losses
from visionattn.utils.files import replacing
from visionattn.visualization.curves import line_styles, new_figure, save_figure

from .kept_runs import KeptRuns
from .stems import conv_stem

__all__ = ["BUDGETS", "TUNED", "accuracy", "draw", "pictures", "replaced", "run", "share_of_pairs", "train", "write"]

_SIDE = 14  # of the map of tokens
_RATE = 4e-3  # of the first training; with twice as much one network in three learnt little
_WINDOWS: tuple[tuple[int, int], ...] = ((2, 2), (4, 4), (7, 7), (7, 14), (14, 14))
# Mixer -> its options, from the fewest pairs to all of them.
BUDGETS: dict[str, tuple[dict[str, Any], ...]] = {
    "scatterbrain": tuple({"window": window} for window in _WINDOWS),
    "sparge": tuple({"block": (14, 7), "topk": share} for share in (0.04, 0.11, 0.25, 0.5, 1.0)),
    "vmoba": tuple(
        {"block": (2, 2), "select": "topk", "scope": "query_head", "topk": count} for count in (2, 5, 12, 25, 49)
    ),
    "swin": tuple({"window_size": window, "shift_size": 0, "rel_pos": False} for window in _WINDOWS),
}
_TITLES = {"swin": "windows alone", "softmax": "softmax attention, as it was"}
# Mixer -> its options, for the network that is trained for one more epoch.
TUNED: dict[str, dict[str, Any]] = {
    "softmax": {},
    "fastmax": {"order": 2},
    "sparsifiner": {"keep_rate": 0.25, "prefix_tokens": 0, "grid": _SIDE},
    "multi_window": {"window_sizes": (4, 0)},
}
Pictures = tuple[torch.Tensor, torch.Tensor]


@cache
def pictures(split: str, count: int) -> Pictures:
    """The first pictures of Fashion-MNIST, `(count, 1, 28, 28)`, normalised, and their classes."""
    data = FashionMNIST(split, [])
    images = torch.from_numpy(np.array(data.images[:count])).float().unsqueeze(1)
    return images / 64 - 1.2, torch.tensor(data.labels[:count])


def train(model: nn.Module, data: Pictures, epochs: int, rate: float, generator: torch.Generator) -> None:
    """Trains all weights: AdamW, one cycle of the learning rate, batches of 25.

    A Sparsifiner's predictor learns in the first half of the steps, while attention is full; then it is used.
    """
    steps = epochs * (len(data[0]) // 25)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    predictors = [module for module in model.modules() if isinstance(module, SparsifinerAttention)]
    model.train()
    order = torch.cat([torch.randperm(len(data[0]), generator=generator) for _ in range(epochs)])
    for step, numbers in enumerate(order.split(25)[:steps]):
        for module in predictors:
            module.reconstruct, module.reconstruct_weight = step < steps // 2, 10.0
        with collect_losses() as losses:
            scores = model(data[0][numbers])
        loss = F.cross_entropy(scores, data[1][numbers])
        loss = loss + sum(torch.stack(values).mean() for values in losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Pictures) -> float:
    """Share of right answers in %."""
    model.eval()
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(data[0].split(100), data[1].split(100), strict=True)]
    return 100 * float(sum(right)) / len(data[0])


def replaced(model: nn.Module, mixer: str, options: dict[str, Any]) -> nn.Module:
    """A copy of a network with the mixer in place of attention, with its weights."""
    return replace_attention(deepcopy(model), mixer, weights="keep", **options)


@torch.no_grad()
def share_of_pairs(model: Any, images: torch.Tensor) -> float:
    """Share of all pairs of tokens whose weight is computed, in %, as a mean over the layers.

    Random features are no pairs: those of Scatterbrain cost about as much as so many further keys of each query.
    """
    shares: list[float] = []

    def look(module: Any, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        x = inputs[0]
        window = getattr(module, "window", None) or getattr(module, "window_size", None)
        if window is not None:
            tiles = Blocks.tiles((x.size(1), x.size(2)), window)
            every = torch.eye(len(tiles.tokens), dtype=torch.bool)[None, None]
            shares.append(pair_mask(every, tiles, tiles).float().mean().item())
        else:
            shares.append((module.weights(x) > 0).float().mean().item())

    names = [replacement.name for replacement in model.replaced]
    hooks = [model.get_submodule(name).register_forward_hook(look) for name in names]
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    return 100 * mean(shares)


def run(seed: int, kept: KeptRuns, *, images: int, epochs: int, tests: int) -> dict[str, Any]:
    """Trains a network of one seed and gives what each mixer does in it.

    Args:
        seed: Of the weights and the order of the pictures.
        kept: Where results are looked up and kept.
        images: Number of training pictures.
        epochs: How often the first network sees each.
        tests: Number of test pictures.

    Returns:
        Accuracies in %: `full`; for each mixer of `BUDGETS` pairs of the share of pairs and the accuracy; for each of
        `TUNED` the accuracies before and after an epoch more.
    """
    data, test = pictures("train", images), pictures("test", tests)
    base = cache(partial(_trained, seed, data, epochs))

    def sparse(mixer: str) -> list[tuple[float, float]]:
        models = [replaced(base(), mixer, options) for options in BUDGETS[mixer]]
        return [(share_of_pairs(model, test[0][:20]), accuracy(model, test)) for model in models]

    def tuned(mixer: str) -> list[float]:
        torch.manual_seed(seed)
        model = deepcopy(base()) if mixer == "softmax" else replaced(base(), mixer, TUNED[mixer])
        before = accuracy(model, test)
        train(model, data, 1, 1e-3, torch.Generator().manual_seed(seed + 1000))
        return [before, accuracy(model, test)]

    full = kept.get(f"full {seed}", lambda: accuracy(base(), test))
    found = {mixer: kept.get(f"{mixer} {seed}", partial(sparse, mixer)) for mixer in BUDGETS}
    return {"full": full, **found, "tuned": {m: kept.get(f"{m} tuned {seed}", partial(tuned, m)) for m in TUNED}}


def _trained(seed: int, data: Pictures, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    stem = partial(conv_stem, patch_size=2)
    model = vit("softmax", 32, 2, 2, stem=stem, patch_size=2, img_size=28, in_chans=1, num_classes=10)
    train(model, data, epochs, _RATE, torch.Generator().manual_seed(seed))
    return model


def write(results: Sequence[dict[str, Any]], out: Path, command: str) -> str:
    """Writes both tables, means over the seeds and each in turn; returns the text."""
    text = "\n".join([_HEAD.format(command=command), *_sparse_rows(results), "", _MIDDLE, *_tuned_rows(results), ""])
    text += f"\n![Accuracy over the share of pairs]({out.with_suffix('.png').name})\n"
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _sparse_rows(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| | options | pairs computed, % | accuracy, % | each seed |"
    yield "|---|---|---|---|---|"
    yield f"| {_TITLES['softmax']} | | 100 | {_cells([one['full'] for one in results])} |"
    for mixer, budgets in BUDGETS.items():
        for number, options in enumerate(budgets):
            shares, found = zip(*(one[mixer][number] for one in results), strict=True)
            said = ", ".join(f"{key} {value}" for key, value in options.items() if key in _SAID)
            yield f"| {_TITLES.get(mixer, mixer)} | {said} | {mean(shares):.1f} | {_cells(found)} |"


_SAID = ("window", "window_size", "topk")


def _tuned_rows(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| | options | before, % | after, % | each seed |"
    yield "|---|---|---|---|---|"
    for mixer, options in TUNED.items():
        before, after = zip(*(one["tuned"][mixer] for one in results), strict=True)
        said = ", ".join(f"{key} {value}" for key, value in options.items() if key not in ("grid", "prefix_tokens"))
        yield f"| {_TITLES.get(mixer, mixer)} | {said} | {mean(before):.1f} | {_cells(after)} |"


def _cells(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} | {', '.join(f'{value:.1f}' for value in values)}"


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws accuracy over the share of pairs, the mean and the range of the seeds, as a `.png` file."""
    figure = new_figure(6.4, 4.4, 90)
    axes = figure.subplots()
    for mixer, style in zip(BUDGETS, line_styles(len(BUDGETS)), strict=True):
        values = np.array([one[mixer] for one in results])  # (seeds, budgets, 2)
        shares, found = values[..., 0].mean(0), values[..., 1]
        axes.plot(shares, found.mean(0), label=_TITLES.get(mixer, mixer), marker="o", **style)
        axes.fill_between(shares, found.min(0), found.max(0), alpha=0.15, color=style.get("color"))
    axes.axhline(mean(one["full"] for one in results), color="0.5", lw=1, label=_TITLES["softmax"])
    axes.set(xlabel="pairs computed, %", ylabel="accuracy in %, mean and range of the seeds", xscale="log")
    axes.set_xticks([2, 5, 10, 25, 50, 100], ["2", "5", "10", "25", "50", "100"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, path)


_HEAD = """# Attention replaced in a trained vision transformer

A narrow vision transformer (width 32, two blocks, 14 x 14 tokens from two convolutions) is trained on Fashion-MNIST
with softmax attention, which is then replaced by `visionattn.replace_attention(..., weights="keep")`: nothing is
trained afterwards. Accuracy on test pictures against the share of pairs of tokens whose weight is computed. Softmax
attention inside windows alone is what Scatterbrain is without its random features, and the null model of the two that
choose blocks. The features cost about as much as 44 more keys of each query, and are not counted.

    {command}

## Without training
"""
_MIDDLE = """## After one epoch more

Mixers that compute other weights, before and after one epoch of training with the same pictures; softmax attention
trained for that epoch too is their null model. Sparsifiner's predictor learns in the first half of the epoch.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all seeds, writes the tables and draws the picture beside them; finished runs are kept in a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("budgets.md"), help="the tables; the picture lies beside them")
    options = parser.parse_args(arguments)
    sizes = {"images": options.images, "epochs": options.epochs, "tests": options.tests}
    kept = KeptRuns(options.out.with_suffix(".json"), {**sizes, "rate": _RATE})
    results = [run(seed, kept, **sizes) for seed in options.seeds]
    settings = f"--images {options.images} --epochs {options.epochs} --tests {options.tests}"
    command = f"python -m visionattn.comparison.budgets --seeds {' '.join(map(str, options.seeds))} {settings}"
    print(write(results, options.out, f"{command} --out {options.out}"))
    draw(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

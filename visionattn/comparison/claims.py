"""What papers of sequence mixers claim, tried on pictures against null models.

python -m visionattn.comparison.claims --seeds 0 1 2 --out docs/results/claims.md
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import get
from visionattn.explain import denoise_rope
from visionattn.heads.bidaf import CoAttention
from visionattn.models.hosts.columnar import Columnar

from . import claim_tasks as tasks
from .kept_runs import KeptRuns

__all__ = ["CLAIMS", "Claim", "Contest", "accuracy", "fit", "network", "run", "verdict", "write"]

Values = dict[str, float]
# Name of a mixer and its options.
Mixer = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Contest:
    """Two values of a run that a claim compares.

    Args:
        ours: Name of the value of the mechanism.
        null: Name of the value of the null model.
        better: `higher` or `lower`, or `near`: ours is at most two points below.
    """

    ours: str
    null: str
    better: str = "higher"


@dataclass(frozen=True)
class Claim:
    """What a paper says and how it is tried.

    Args:
        text: What should come out.
        run: Trains all networks of a seed, each for so many `steps`, and gives values by name.
        contests: Which of them are compared.
    """

    text: str
    run: Callable[[int, int], Values]
    contests: tuple[Contest, ...]


def network(
    mixers: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    dim: int = 32,
    heads: int = 4,
    dense: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A plain vision transformer with a mixer a block, of 10 classes or of answers for each token.

    Args:
        mixers: Name and options of each block's mixer.
        dim: Width.
        heads: Heads, where a mixer has any.
        dense: Whether it answers for each token.
        **kwargs: As `Columnar`.
    """

    def build(context: Any, **dd: Any) -> dict[str, nn.Module]:
        name, options = mixers[context.block]
        made = get("mixer", name).constructor
        taken = {"num_heads": heads} if name not in ("chela", "mega") else {}
        return {"attn": made(dim, **{**taken, **options}, **dd)}

    settings = {"in_chans": 1, "num_classes": 10, "patch_size": 2, "img_size": 8, **kwargs}
    if not dense:
        return Columnar(dim, len(mixers), heads, mixers=build, **settings)
    classes = settings.pop("num_classes")
    body = Columnar(dim, len(mixers), heads, mixers=build, num_classes=0, **settings)
    return Dense(body, nn.Conv2d(dim, classes, 1))


class Dense(nn.Module):
    """Answers for each token. `(B, in_chans, H, W) -> (B, classes, H', W')`."""

    def __init__(self, body: Columnar, head: nn.Conv2d) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body.forward_features(x))


class TwoPictures(nn.Module):
    """Whether two pictures `(B, 2, H, W)` show the same: `CoAttention` or the means of both. `-> (B, 2)`."""

    def __init__(self, joint: bool, dim: int = 32) -> None:
        super().__init__()
        convs = (nn.Conv2d(1, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, dim, 4, 2, 1), nn.GELU())
        self.stem = nn.Sequential(*convs, nn.Conv2d(dim, dim, 3, padding=1))
        self.fuse = CoAttention(dim) if joint else None
        self.head = nn.Sequential(nn.Linear(4 * dim if joint else 2 * dim, 64), nn.GELU())
        self.classify = nn.Linear(64, 2)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x).flatten(2).mT

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (self.tokens(picture) for picture in x.split(1, 1))
        if self.fuse is None:
            return self.classify(self.head(torch.cat((a.mean(1), b.mean(1)), 1)))
        return self.classify(self.head(self.fuse(a, b)[0]).mean(1))


def fit(model: nn.Module, task: tasks.Task, steps: int, seed: int, *, batch: int = 64, rate: float = 8e-3) -> nn.Module:
    """Trains a network on pictures in an order of a seed: AdamW, one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        numbers = torch.randint(len(task[0]), (batch,), generator=generator)
        loss = F.cross_entropy(model(task[0][numbers]), task[1][numbers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, task: tasks.Task) -> float:
    """Share of right answers in %, of those that were asked for."""
    model.eval()
    asked = task[1] != -100
    found = torch.cat([model(x).argmax(1) for x in task[0].split(100)])
    return 100 * (found == task[1])[asked].float().mean().item()


def _trained(build: Callable[[], nn.Module], task: tasks.Task, steps: int, seed: int, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return fit(build(), task, steps, seed, **kwargs)


def _compare(
    builds: Mapping[str, Callable[[], nn.Module]], task: tasks.Task, test: tasks.Task, steps: int, seed: int
) -> Values:
    return {name: accuracy(_trained(build, task, steps, seed), test) for name, build in builds.items()}


def _on_digits(variants: Mapping[str, Sequence[Mixer]], seed: int, steps: int) -> Values:
    builds = {name: partial(network, mixers) for name, mixers in variants.items()}
    return _compare(builds, tasks.digits("train"), tasks.digits("test"), steps, seed)


def _neighbours(seed: int, steps: int) -> Values:
    """Accuracy after a half and after all of the steps."""
    task, test = tasks.ordered_neighbours("train", 4000, seed), tasks.ordered_neighbours("test", 600, 0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 2, "heads": 2}
    builds = {name: partial(network, [(name, {})], **sizes) for name in ("mta", "softmax")}
    half = _compare(builds, task, test, steps // 2, seed)
    return _compare(builds, task, test, steps, seed) | {f"{name}, half the steps": v for name, v in half.items()}


def _clutter(seed: int, steps: int) -> Values:
    """Accuracy, and where the keys that count lie."""
    pictures, labels, _ = tasks.cluttered_digits("train", 3000, seed)
    images, answers, there = tasks.cluttered_digits("test", 400, 0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "heads": 2}
    chosen: dict[str, dict[str, Any]] = {"dma": {"keep": 0.25}, "softmax": {}, "landmark": {"window": 2}}
    found: Values = {}
    place = there.flatten(1).float()
    for name, options in chosen.items():
        build = partial(network, [(name, options)] * 2, **sizes)
        model: Any = _trained(build, (pictures, labels), steps, seed, batch=32)
        found[f"{name}, accuracy"] = accuracy(model, (images, answers))
        if name == "softmax":
            continue
        weights = _weights(model, images)
        if name == "dma":
            kept = (weights > 0).any(-2).float().mean(1)  # of a query, all see the same
            found["dma, kept keys on the digit"] = 100 * ((kept * place).sum(1) / kept.sum(1)).mean().item()
        else:
            outside = 1 - place
            taken = torch.einsum("bhqk,bk->bhq", weights, place).mean(1)
            found["landmark, weight that others give the digit"] = (
                100 * ((taken * outside).sum(1) / outside.sum(1)).mean().item()
            )
            for block in model.blocks:
                block.attn.fn.topk = 4
            found["landmark, accuracy with 4 windows"] = accuracy(model, (images, answers))
    return found | {"area of the digit": 100 * place.mean().item()}


@torch.no_grad()
def _weights(model: Any, images: torch.Tensor) -> torch.Tensor:
    """The weights of the last mixer, `(B, heads, N, N)`."""
    seen: list[torch.Tensor] = []
    attn = model.blocks[-1].attn.fn
    hook = attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    return attn.weights(seen[0])


def _heads(seed: int, steps: int) -> Values:
    """Multi-head embedding against one head, and against multi-head attention of no more parameters."""
    one: Mixer = ("mhe", {"num_heads": 1, "head_dim": 8, "embed_std": 0.0})
    variants: dict[str, Mixer] = {
        "mul": ("mhe", {}),
        "add": ("mhe", {"mode": "add"}),
        "one head": one,
        "softmax": ("softmax", {}),
    }
    builds: dict[str, Callable[[], nn.Module]] = {
        name: partial(network, [mixer] * 2) for name, mixer in variants.items()
    }
    most = _size(builds["mul"]())
    narrow = max(dim for dim in range(4, 33, 4) if _size(network([("softmax", {})] * 2, dim=dim)) <= most)
    builds["softmax, equal parameters"] = partial(network, [("softmax", {})] * 2, dim=narrow)
    found = _compare(builds, tasks.digits("train"), tasks.digits("test"), steps, seed)
    return found | {f"{name}, parameters": float(_size(build())) for name, build in builds.items()}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _windows(seed: int, steps: int) -> Values:
    small = {"window_size": 2, "rel_pos": False}
    variants: dict[str, Sequence[Mixer]] = {
        "windows": [("swin", small)] * 2,
        "windows and anchors": [("star", {"window": 2})] * 2,
        "windows and moving averages": [("mega", {"window": 2, "max_window": 2, "ndim": 4})] * 2,
        "softmax": [("softmax", {})] * 2,
    }
    return _on_digits(variants, seed, steps)


def _copying(seed: int, steps: int) -> Values:
    sizes: dict[str, Any] = {"in_chans": 8, "num_classes": 8, "patch_size": 1, "img_size": 8, "dense": True}
    variants: dict[str, tuple[str, dict[str, Any], bool]] = {
        "mvpa": ("mvpa", {"grid_size": 8}, False),
        "softmax, no positions": ("softmax", {}, False),
        "softmax, learnt positions": ("softmax", {}, True),
    }
    found: Values = {}
    for name, (mixer, options, position) in variants.items():
        build = partial(network, [(mixer, options)], position=position, **sizes)
        model = _trained(build, tasks.copied_symbols(8, 4000, seed), steps, seed, batch=32)
        found |= {name: accuracy(model, tasks.copied_symbols(8, 100, 1000))}
        found |= {f"{name}, 12 x 12": accuracy(model, tasks.copied_symbols(12, 100, 1000))}
    return found


def _recall(seed: int, steps: int) -> Values:
    sizes: dict[str, Any] = {
        "in_chans": 16,
        "num_classes": 8,
        "patch_size": 1,
        "img_size": (2, 8),
        "dense": True,
        "heads": 2,
    }
    variants: dict[str, Mixer] = {
        "titans": ("titans", {"chunk": 1, "directions": 1}),
        "uniform mean": ("deconstructed", {"kind": "uniform"}),
        "softmax": ("softmax", {}),
    }
    builds = {name: partial(network, [mixer] * 2, **sizes) for name, mixer in variants.items()}
    return _compare(builds, tasks.recalled_symbols(6000, seed), tasks.recalled_symbols(400, 1000), steps, seed)


def _null_models(seed: int, steps: int) -> Values:
    """Each kind in all four blocks, and in every other one in turn with attention."""
    kinds = ("uniform", "mlp", "self_gate", "relu", "taylor")
    plain: Mixer = ("deconstructed", {"kind": "softmax"})
    variants: dict[str, list[Mixer]] = {"softmax": [plain] * 4}
    for kind in kinds:
        other: Mixer = ("deconstructed", {"kind": kind})
        variants |= {kind: [other] * 4, f"{kind}, every other block": [other, plain] * 2}
    return _on_digits(variants, seed, steps)


def _scans(seed: int, steps: int) -> Values:
    regla: dict[str, dict[str, Any]] = {
        "refined": {},
        "plain gate": {"refined": False},
        "two directions": {"directions": 2},
    }
    chela: dict[str, dict[str, Any]] = {
        "both": {},
        "short only": {"long": None},
        "long only": {"short": None},
        "none": {"short": None, "long": None},
    }
    variants: dict[str, list[Mixer]] = {f"regla, {name}": [("regla", options)] * 2 for name, options in regla.items()}
    variants |= {f"chela, {name} convolutions": [("chela", options)] * 2 for name, options in chela.items()}
    return _on_digits(variants, seed, steps)


def _larger_grids(seed: int, steps: int) -> Values:
    """Accuracy on the grid of the training pictures and on larger ones; DoPE comes after training."""
    builds: dict[str, Callable[[], nn.Module]] = {
        "tapa": partial(network, [("tapa", {})] * 2, position=False, img_size=16),
        "no positions": partial(network, [("softmax", {})] * 2, position=False, img_size=16),
        "learnt positions": partial(network, [("softmax", {})] * 2, img_size=16),
        "rotary": _rotary,
    }
    task = tasks.digits_on_canvas("train", 16, 4000, seed)
    tests = {f"{side // 2} x {side // 2}": tasks.digits_on_canvas("test", side, 300, 1000) for side in (16, 24, 32)}
    found: Values = {}
    for name, build in builds.items():
        model = _trained(build, task, steps, seed, batch=32)
        found |= {f"{name}, {grid}": accuracy(model, test) for grid, test in tests.items()}
    draw = torch.Generator().manual_seed(seed)
    at_random: list[list[int]] = [torch.randint(4, (1,), generator=draw).tolist() for _ in range(2)]
    chosen: dict[str, Any] = {"dope": 1, "any heads": at_random}
    for name, heads in chosen.items():
        for grid, test in tests.items():
            with denoise_rope(model, [test[0][:50]], heads=heads, train_grid=(8, 8)):
                found[f"rotary, {name}, {grid}"] = accuracy(model, test)
    return found


def _rotary() -> nn.Module:
    """Attention with rotary embeddings, timm's."""
    sizes: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 32,
        "num_heads": 4,
        "depth": 2,
    }
    return timm.create_model("vit_small_patch16_rope_224", **sizes, num_classes=10, dynamic_img_size=True)


def _pairs(seed: int, steps: int) -> Values:
    builds = {"co-attention": partial(TwoPictures, True), "two means": partial(TwoPictures, False)}
    return _compare(builds, tasks.digit_pairs("train", 6000, seed), tasks.digit_pairs("test", 600, 1000), steps, seed)


CLAIMS: dict[str, Claim] = {
    "multi_token": Claim(
        "One layer of multi-token attention learns sooner than one of softmax attention whether a 3 stands directly "
        "left of a 5.",
        _neighbours,
        (Contest("mta, half the steps", "softmax, half the steps"), Contest("mta", "softmax")),
    ),
    "clutter": Claim(
        "A digit among pieces of others. Dynamic masks keep a quarter of the keys, which fall on the digit, and lose "
        "less than two points; landmarks lead to the digit, and a third of the keys suffices.",
        _clutter,
        (
            Contest("dma, accuracy", "softmax, accuracy", "near"),
            Contest("dma, kept keys on the digit", "area of the digit"),
            Contest("landmark, weight that others give the digit", "area of the digit"),
            Contest("landmark, accuracy with 4 windows", "landmark, accuracy", "near"),
        ),
    ),
    "mhe": Claim(
        "Heads that embed one projection are better than one head, and than as many parameters in softmax attention.",
        _heads,
        (
            Contest("mul", "one head"),
            Contest("add", "one head"),
            Contest("mul", "softmax, equal parameters"),
            Contest("mul", "softmax", "near"),
        ),
    ),
    "windows": Claim(
        "Anchors (star) and moving averages (Mega) bring windows of 2 x 2 what they lack of the whole map.",
        _windows,
        (Contest("windows and anchors", "windows"), Contest("windows and moving averages", "windows")),
    ),
    "mvpa": Claim(
        "Scores of row and column offsets alone find the symbol two rows above, on larger maps too.",
        _copying,
        (
            Contest("mvpa", "softmax, no positions"),
            Contest("mvpa", "softmax, learnt positions"),
            Contest("mvpa, 12 x 12", "softmax, learnt positions, 12 x 12"),
        ),
    ),
    "titans": Claim(
        "A memory that learns as it reads recalls the value of a key.",
        _recall,
        (Contest("titans", "uniform mean"),),
    ),
    "deconstructed": Claim(
        "Without mixing, or with one mean for all, attention's accuracy is lost; in turn with attention it is not.",
        _null_models,
        (
            Contest("mlp", "softmax", "lower"),
            Contest("uniform", "softmax", "lower"),
            Contest("self_gate", "softmax", "lower"),
            *(
                Contest(f"{kind}, every other block", "softmax", "near")
                for kind in ("uniform", "mlp", "self_gate", "relu", "taylor")
            ),
        ),
    ),
    "scans": Claim(
        "ReGLA: the refined gate is no worse than a plain one, and four directions than two. CHELA: a short and a long "
        "convolution are better than either and than none.",
        _scans,
        (
            Contest("regla, refined", "regla, plain gate"),
            Contest("regla, refined", "regla, two directions"),
            Contest("chela, both convolutions", "chela, short only convolutions"),
            Contest("chela, both convolutions", "chela, long only convolutions"),
            Contest("chela, both convolutions", "chela, none convolutions"),
        ),
    ),
    "grids": Claim(
        "Token-aware phases (TAPA) carry over to larger maps than trained on; DoPE lets rotary embeddings do so.",
        _larger_grids,
        (
            *(
                Contest(f"tapa, {grid}", f"{other}, {grid}")
                for other in ("learnt positions", "rotary", "no positions")
                for grid in ("12 x 12", "16 x 16")
            ),
            *(
                Contest(f"rotary, dope, {grid}", f"{other}, {grid}")
                for other in ("rotary", "rotary, any heads")
                for grid in ("12 x 12", "16 x 16")
            ),
        ),
    ),
    "bidaf": Claim(
        "Attention between two pictures tells better than two means whether they show the same digit.",
        _pairs,
        (Contest("co-attention", "two means"),),
    ),
}


def verdict(ours: Sequence[float], null: Sequence[float], better: str) -> str:
    """What the seeds say: `won` and `lost` where the worst of one side is beyond the best of the other."""
    if better == "near":
        return "held" if mean(ours) >= mean(null) - 2 else "not held"
    if better == "lower":
        ours, null = ([-value for value in values] for values in (ours, null))
    if min(ours) > max(null):
        return "won" if len(ours) > 2 else "ahead, too few seeds to tell"
    if max(ours) < min(null):
        return "lost" if len(ours) > 2 else "behind, too few seeds to tell"
    return "no difference beyond the seeds"


def run(name: str, seed: int, kept: KeptRuns, steps: int) -> Values:
    """The values of one claim and seed, computed if they are not kept yet."""
    return kept.get(f"{name} {seed}", lambda: CLAIMS[name].run(seed, steps))


def write(results: Mapping[str, Sequence[Values]], out: Path, command: str) -> str:
    """Writes the verdicts, and all values below them, as tables; returns the text."""
    lines = [_HEAD.format(command=command), "| | ours | | null model | | |", "|---|---|---|---|---|---|"]
    lines += [line for name, runs in results.items() for line in _contest_rows(name, runs)]
    lines += ["", "## All values", ""]
    for name, runs in results.items():
        lines += [f"### {name}", "", CLAIMS[name].text, "", "| | mean | each seed |", "|---|---|---|"]
        lines += [f"| {value} | {_cell([one[value] for one in runs], ' | ')} |" for value in runs[0]]
        lines.append("")
    text = "\n".join(lines)
    out.write_text(text, encoding="utf-8")
    return text


def _contest_rows(name: str, runs: Sequence[Values]) -> Iterator[str]:
    for contest in CLAIMS[name].contests:
        ours, null = ([one[key] for one in runs] for key in (contest.ours, contest.null))
        said = {"higher": "", "lower": " (should be lower)", "near": " (at most two points lower)"}[contest.better]
        cells = [name, contest.ours + said, _cell(ours), contest.null, _cell(null)]
        yield f"| {' | '.join([*cells, verdict(ours, null, contest.better)])} |"


def _cell(values: Sequence[float], between: str = " ") -> str:
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{mean(values):.1f}{between}{each if '|' in between else f'({each})'}"


_HEAD = """# What papers of sequence mixers claim, on pictures

Small networks (width 32, one to four blocks, seconds of training) on scikit-learn's digits and on symbols, each
mechanism against a null model in its place; test pictures hold other digits. Values in % unless said otherwise: the
mean, and each seed in turn. `won`: the worst seed is ahead of the null model's best; `lost`: the other way round;
`held`: at most two points below on the mean.

    {command}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all claims and seeds and writes the tables; finished runs are kept in a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--claims", nargs="+", choices=[*CLAIMS], default=[*CLAIMS])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("claims.md"), help="the tables; finished runs lie beside them")
    options = parser.parse_args(arguments)
    kept = KeptRuns(options.out.with_suffix(".json"), {"steps": options.steps})
    results = {name: [run(name, seed, kept, options.steps) for seed in options.seeds] for name in options.claims}
    seeds = " ".join(map(str, options.seeds))
    chosen = "" if options.claims == [*CLAIMS] else f" --claims {' '.join(options.claims)}"
    command = f"python -m visionattn.comparison.claims --seeds {seeds}{chosen} --steps {options.steps}"
    print(write(results, options.out, f"{command} --out {options.out}"))


if __name__ == "__main__":
    main()

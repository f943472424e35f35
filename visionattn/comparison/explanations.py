"""How well explanations point at what a network answers for, and at what changes its answer.

python -m visionattn.comparison.explanations --seeds 0 1 2 --out docs/results/explanations.md
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from visionattn import explain
from visionattn.checkpoints import build
from visionattn.data.digits import Digits
from visionattn.utils.files import replacing
from visionattn.utils.resources import read_manifest

__all__ = ["METHODS", "SCORES", "evaluate", "load", "networks", "scenes", "write"]

Maps = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
# The pictures, and for each what the network answers, the square of that digit and its ink.
Scenes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _random(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(x), 8, 8, generator=torch.Generator().manual_seed(int(target.sum())))


def _centre(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    sides = (torch.linspace(-1, 1, side) for side in x.shape[2:])
    return (-4 * torch.cartesian_prod(*sides).square().sum(1)).exp().view(1, *x.shape[2:]).expand(len(x), -1, -1)


def _attention(make: Callable[[explain.Record], torch.Tensor]) -> Maps:
    def maps(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), explain.capture(model, keep=("probs",)) as record:
            model(x)
        return make(record)

    return maps


def _gates(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    spatial = [factors["spatial"] for factors in explain.gates(model, x).values() if "spatial" in factors]
    if not spatial:
        raise ValueError("no gate has places")
    return spatial[-1].mean(1)


def _convolutional(method: Maps) -> Maps:
    """For networks without attention."""

    def maps(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        try:
            with torch.no_grad(), explain.capture(model, keep=()):
                model(x[:1])
        except ValueError:
            return method(model, x, target)
        raise ValueError("the network has attention")

    return maps


def _cam(name: str) -> Maps:
    return lambda model, x, target: explain.cam(model, x, target, method=name)


def _lrp(model: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return explain.lrp(model, x, target, rule="alpha_beta").sum(1)


# Name -> what makes maps `(B, h, w)` of a network, images and classes; the first two know nothing of the network.
METHODS: dict[str, Maps] = {
    "random": _random,
    "centre": _centre,
    "attention of the last layer": _attention(explain.raw),
    "rollout": _attention(explain.rollout),
    "relevance": explain.relevance,
    "attention-gradcam": explain.attention_grad_cam,
    **{name: _cam(name) for name in explain.CAMS},
    "last spatial gate": _gates,
    "lrp": _convolutional(_lrp),
    "salient relevance": _convolutional(explain.salient_relevance),
}
SCORES = ("mass in box", "mass in ink", "pointing game", "deletion", "insertion")


def networks() -> list[str]:
    """Packaged classifiers that know digits."""
    return [name for name, entry in read_manifest().items() if entry["dataset"] == "Digits"]


def load(name: str) -> Any:
    """A packaged network, ready to compute."""
    model: Any = build(name).eval()
    return getattr(model, "backbone", model)  # a task without a head of its own


def scenes(model: Any, seed: int, count: int, side: int = 2) -> tuple[Scenes, float]:
    """Test digits of different classes in a square, kept if the network answers with one of them; and how many do.

    Args:
        model: A classifier of digits of 32 x 32 pixels in -1..1.
        seed: Which digits.
        count: How many pictures are tried.
        side: Digits along a side of the square, 2 or 3.
    """
    data = Digits("test", [{"type": "Resize", "height": 32, "width": 32}])
    prepared = torch.stack([data[number]["inputs"] for number in range(len(data))]) / 127.5 - 1
    labels = torch.as_tensor(data.labels)
    draw = np.random.default_rng((seed, 19))
    pictures, classes = [], []
    for _ in range(count):
        shown = draw.choice(10, side * side, replace=False)
        chosen = [int(draw.choice(np.flatnonzero(labels == int(digit)))) for digit in shown]
        rows = [
            torch.cat([prepared[i] for i in chosen[start : start + side]], 2) for start in range(0, len(shown), side)
        ]
        pictures.append(torch.cat(rows, 1))
        classes.append(torch.from_numpy(shown))
    x = torch.stack(pictures)
    with torch.no_grad():
        answers = model(x).argmax(1)
    hits = torch.stack(classes) == answers[:, None]
    boxes = hits.view(-1, side, side).float()
    boxes = F.interpolate(boxes[:, None], x.shape[2:], mode="nearest")[:, 0]
    ink = boxes * (x.mean(1) > 0)
    kept = hits.any(1)
    return (x[kept], answers[kept], boxes[kept], ink[kept]), kept.float().mean().item()


def evaluate(model: Any, data: Scenes, methods: Sequence[str], *, steps: int) -> dict[str, dict[str, float]]:
    """Scores of every method that the network offers.

    Args:
        model: A classifier.
        data: Pictures, answers, squares and ink.
        methods: Names in `METHODS`.
        steps: Of deletion and insertion.
    """
    x, target, boxes, ink = data
    found = {}
    for name in methods:
        try:
            maps = METHODS[name](model, x, target).detach().float().clamp_min(0)
        except ValueError:  # the network does not offer it
            continue
        large = maps if maps.shape[1:] == x.shape[2:] else explain.upsample(maps, x.shape[2:])
        curves = explain.deletion_insertion(model, x, large, target, steps=steps)
        scores = (
            explain.mass_in_mask(large, boxes),
            explain.mass_in_mask(large, ink),
            explain.pointing_game(large, boxes),
            curves["deletion"],
            curves["insertion"],
        )
        found[name] = {key: round(score.nanmean().item(), 6) for key, score in zip(SCORES, scores, strict=True)}
    return found


# Side of the squares -> network -> its share of answers and, for each method, a dict of scores for each seed; a method
# that the network does not offer has none.
Results = dict[str, dict[str, dict[str, Any]]]


def write(results: Results, out: Path, command: str) -> str:
    """Writes the tables of each size of square, over all networks and for each; returns the text."""
    lines = [_HEAD.format(command=command)]
    for side, found in results.items():
        count = int(side) ** 2
        lines += [_SQUARES.format(count=count, pixels=32 * int(side), chance=1 / count), *_summary(found), ""]
    for side, found in results.items():
        lines += [_BETWEEN.format(count=int(side) ** 2), "", *_rows(found), ""]
    text = "\n".join([*lines, _FOOT])
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _summary(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"| method | networks | {' | '.join(SCORES)} |"
    yield "|---" * (len(SCORES) + 2) + "|"
    for method in METHODS:
        offered = [runs for each in found.values() if (runs := each["methods"].get(method))]
        means = (mean(run[score] for runs in offered for run in runs) for score in SCORES if offered)
        if offered:
            yield f"| {method} | {len(offered)} | {' | '.join(f'{value:.3f}' for value in means)} |"


def _rows(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"| network | answers with a digit shown | method | {' | '.join(SCORES)} |"
    yield "|---" * (len(SCORES) + 3) + "|"
    for network, each in found.items():
        offered = [(method, runs) for method in METHODS if (runs := each["methods"].get(method))]
        for number, (method, runs) in enumerate(offered):
            first = [f"`{network}`", f"{100 * mean(each['answered']):.0f} %"] if not number else ["", ""]
            scores = [_spread([run[score] for run in runs]) for score in SCORES]
            yield f"| {' | '.join([*first, method, *scores])} |"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


_HEAD = """# Where networks look, against where the digit is

Four or nine test digits of different classes, side by side in a square; where a network answers with one of them, an
explanation of that answer should point at that digit and not at the others. Of each map's positive part: the share of
its mass in the digit's part of the picture (`mass in box`) and on its ink, how often its largest value lies in that
part (`pointing game`), and the mean probability of the answer while pixels are deleted, largest first (`deletion`:
small is good), or inserted into a blurred picture (`insertion`: large is good). `random` and `centre` know nothing of
network or picture: what is not better than they explains nothing here.

    {command}

What it finds lies beside this page as JSON, and what lies there is not computed again.
"""
_SQUARES = """\
{count} digits, {pixels} x {pixels} pixels; by chance {chance:.2f} of the mass lies in the box, and as many maxima. The
mean over all networks and seeds:
"""
_BETWEEN = "Each network on {count} digits, mean and standard deviation over the seeds:"
_FOOT = """\
The networks are the packaged classifiers of digits. They have never seen several digits at once, nor a photograph: on
the digit scenes of photographs, which detectors are trained on, they are right in 6 to 19 % of the cases, so there is
no answer to explain there. Classifiers of clothes do not know digits at all. Class activation maps need the extra
`explain`; methods that a network does not offer are left out (`visionattn explain --model NAME --list` says why).
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates all networks on the scenes of all seeds and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=networks(), help="published checkpoints that know digits")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--sides", type=int, nargs="+", choices=(2, 3), default=[2, 3], help="digits along a side")
    parser.add_argument("--scenes", type=int, default=12, help="pictures for each seed")
    parser.add_argument("--steps", type=int, default=6, help="of deletion and insertion")
    parser.add_argument("--out", type=Path, default=Path("explanations.md"), help="the page; results go beside it")
    options = parser.parse_args(arguments)
    settings = f"--seeds {' '.join(map(str, options.seeds))} --scenes {options.scenes} --steps {options.steps}"
    numbers = options.out.with_suffix(".json")
    kept = json.loads(numbers.read_text(encoding="utf-8")) if numbers.exists() else {}
    results: Results = kept["results"] if kept.get("settings") == settings else {}
    for side in map(str, options.sides):
        for name in options.networks:
            found = results.setdefault(side, {}).setdefault(name, {"answered": [], "methods": {}})
            _complete(found, name, int(side), options)
            print(name, f"{side} x {side}:", sum(map(bool, found["methods"].values())), "methods", flush=True)
            with replacing(numbers) as temporary:  # after each: a run takes minutes
                text = json.dumps({"settings": settings, "results": results}, indent=1)
                temporary.write_text(text + "\n", encoding="utf-8")
    some = "" if {name for found in results.values() for name in found} == {*networks()} else "--networks ... "
    some += "" if {*results} == {"2", "3"} else f"--sides {' '.join(sorted(results))} "
    command = f"python -m visionattn.comparison.explanations {settings} {some}--out {options.out}"
    print(write(results, options.out, command))


def _complete(found: dict[str, Any], name: str, side: int, options: argparse.Namespace) -> None:
    """Evaluates the methods that a network's results lack."""
    without = () if find_spec("pytorch_grad_cam") else explain.CAMS
    missing = [method for method in options.methods if method not in (*found["methods"], *without)]
    if not missing:
        return
    model = load(name)
    runs = []
    found["answered"] = []
    for seed in options.seeds:
        data, share = scenes(model, seed, options.scenes, side)
        found["answered"].append(share)
        runs.append(evaluate(model, data, missing, steps=options.steps))
    found["methods"] |= {method: [run[method] for run in runs if method in run] for method in missing}


if __name__ == "__main__":
    main()

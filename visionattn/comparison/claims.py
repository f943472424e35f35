"""What papers of sequence mixers claim, tried on pictures against null models.

python -m visionattn.comparison.claims --seeds 0 1 2 --out docs/results/claims.md
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from visionattn.utils.files import replacing

from . import claim_trials as trials
from .claim_networks import Recipe
from .kept_runs import KeptRuns

__all__ = ["CLAIMS", "Claim", "Contest", "run", "verdict", "write"]

Values = dict[str, float]
_FAST = Recipe(400, 8e-3)


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
        run: Trains all networks of a seed in the same way, and gives values by name.
        contests: Which of them are compared.
        recipe: How long and how fast each network is trained: as the null model needs it.
    """

    text: str
    run: Callable[[int, Recipe], Values]
    contests: tuple[Contest, ...]
    recipe: Recipe = _FAST


CLAIMS: dict[str, Claim] = {
    "multi_token": Claim(
        "One layer of multi-token attention learns sooner than one of softmax attention whether a 3 stands directly "
        "left of a 5.",
        trials.neighbours,
        (Contest("mta, half the steps", "softmax, half the steps"), Contest("mta", "softmax")),
        Recipe(2000, 2e-3),
    ),
    "clutter": Claim(
        "A digit among pieces of others. Dynamic masks keep a quarter of the keys, which fall on the digit, and lose "
        "less than two points; landmarks lead to the digit, and a third of the keys suffices.",
        trials.clutter,
        (
            Contest("dma, accuracy", "softmax, accuracy", "near"),
            Contest("dma, kept keys on the digit", "area of the digit"),
            Contest("landmark, weight that others give the digit", "area of the digit"),
            Contest("landmark, accuracy with 4 windows", "landmark, accuracy", "near"),
        ),
        Recipe(600, batch=32),
    ),
    "mhe": Claim(
        "Heads that embed one projection are better than one head, and than as many parameters in softmax attention.",
        trials.heads,
        (
            Contest("mul", "one head"),
            Contest("add", "one head"),
            Contest("mul", "softmax, equal parameters"),
            Contest("mul", "softmax", "near"),
        ),
    ),
    "windows": Claim(
        "Anchors (star) and moving averages (Mega) bring windows of 2 x 2 what they lack of the whole map.",
        trials.windows,
        (Contest("windows and anchors", "windows"), Contest("windows and moving averages", "windows")),
    ),
    "mvpa": Claim(
        "Scores of row and column offsets alone find the symbol two rows above, on larger maps too.",
        trials.copying,
        (
            Contest("mvpa", "softmax, no positions"),
            Contest("mvpa", "softmax, learnt positions"),
            Contest("mvpa, 12 x 12", "softmax, learnt positions, 12 x 12"),
        ),
        Recipe(400, 8e-3, 32),
    ),
    "titans": Claim(
        "A memory that learns as it reads recalls the value of a key.",
        trials.recall,
        (Contest("titans", "uniform mean"),),
    ),
    "deconstructed": Claim(
        "Without mixing, or with one mean for all, attention's accuracy is lost; in turn with attention it is not.",
        trials.null_models,
        (
            Contest("mlp", "softmax", "lower"),
            Contest("uniform", "softmax", "lower"),
            Contest("self_gate", "softmax", "lower"),
            *(
                Contest(f"{kind}, every other block", "softmax", "near")
                for kind in ("uniform", "mlp", "self_gate", "relu", "taylor")
            ),
        ),
        Recipe(600),
    ),
    "scans": Claim(
        "ReGLA: the refined gate is no worse than a plain one, and four directions than two. CHELA: a short and a long "
        "convolution are better than either and than none.",
        trials.scans,
        (
            Contest("regla, refined", "regla, plain gate"),
            Contest("regla, refined", "regla, two directions"),
            Contest("chela, both convolutions", "chela, short only convolutions"),
            Contest("chela, both convolutions", "chela, long only convolutions"),
            Contest("chela, both convolutions", "chela, none convolutions"),
        ),
    ),
    "grids": Claim(
        "Token-aware phases (TAPA) carry over to larger maps than trained on.",
        trials.larger_grids,
        tuple(
            Contest(f"tapa, {grid}", f"{other}, {grid}")
            for other in ("learnt positions", "rotary", "no positions")
            for grid in ("16 x 16", "24 x 24")
        ),
        Recipe(800, 1.5e-3, 32),
    ),
    "dope": Claim(
        "DoPE lets a network with rotary embeddings carry over to larger maps, without training, and better than the "
        "same done to any heads.",
        trials.denoised_grids,
        tuple(
            Contest(f"rotary, dope, {grid}", f"{other}, {grid}")
            for other in ("rotary", "rotary, any heads")
            for grid in ("16 x 16", "24 x 24")
        ),
        Recipe(1000, batch=32),
    ),
    "bidaf": Claim(
        "Attention between two pictures tells better than two means whether they show the same digit; the patches of "
        "one digit look at the other.",
        trials.pairs,
        (Contest("co-attention", "two means"), Contest("weight from digit to digit", "area of the digit")),
        Recipe(1200),
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


def run(name: str, seed: int, kept: KeptRuns, steps: int | None = None) -> Values:
    """The values of one claim and seed, computed if they are not kept yet.

    Args:
        name: Of the claim.
        seed: Of weights, pictures and their order.
        kept: Where results are looked up and kept.
        steps: Instead of the claim's own number.
    """
    recipe = _recipe(name, steps)
    return kept.get(f"{name}, {recipe}, seed {seed}", lambda: CLAIMS[name].run(seed, recipe))


def _recipe(name: str, steps: int | None) -> Recipe:
    recipe = CLAIMS[name].recipe
    return replace(recipe, steps=steps) if steps else recipe


def write(results: Mapping[str, Sequence[Values]], out: Path, command: str, steps: int | None = None) -> str:
    """Writes the verdicts, and all values below them, as tables; returns the text.

    Args:
        results: For each claim the values of each seed.
        out: The file.
        command: That makes it.
        steps: Of all claims, if not each one's own.
    """
    lines = [_HEAD.format(command=command), "| | ours | | null model | | |", "|---|---|---|---|---|---|"]
    lines += [line for name, runs in results.items() for line in _contest_rows(name, runs)]
    lines += ["", "## All values", ""]
    for name, runs in results.items():
        text = f"{CLAIMS[name].text} {_recipe(name, steps)}."
        lines += [f"### {name}", "", text, "", "| | mean | each seed |", "|---|---|---|"]
        lines += [f"| {value} | {_cell([one[value] for one in runs], ' | ')} |" for value in runs[0]]
        lines.append("")
    text = "\n".join(lines)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
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

All networks of a claim are trained alike (AdamW, one cycle of the learning rate), with steps and a rate at which the
null model learns. Where one convolution a patch teaches none of them anything (clutter, grids, dope, bidaf), patches
come from several convolutions; where order is asked for (multi_token), from a frozen encoder that has learnt single
digits.

    {command}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all claims and seeds and writes the tables; finished runs are kept in a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--claims", nargs="+", choices=[*CLAIMS], default=[*CLAIMS])
    parser.add_argument("--steps", type=int, help="of each network, instead of what each claim says")
    parser.add_argument("--out", type=Path, default=Path("claims.md"), help="the tables; finished runs lie beside them")
    options = parser.parse_args(arguments)
    kept = KeptRuns(options.out.with_suffix(".json"), {})
    results = {name: [run(name, seed, kept, options.steps) for seed in options.seeds] for name in options.claims}
    command = f"python -m visionattn.comparison.claims --seeds {' '.join(map(str, options.seeds))}"
    command += "" if options.claims == [*CLAIMS] else f" --claims {' '.join(options.claims)}"
    command += f" --steps {options.steps}" if options.steps else ""
    print(write(results, options.out, f"{command} --out {options.out}", options.steps))


if __name__ == "__main__":
    main()

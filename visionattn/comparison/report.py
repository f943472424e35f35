"""The report of a comparison: a table in Markdown and CSV, what it shows in words, and pictures."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from visionattn.benchmark.record import surroundings, versions_of
from visionattn.utils.files import replacing

from .plots import draw_costs, draw_learning
from .results import Ratio, Result
from .significance import seed_noise

__all__ = ["write_report"]

_EXPLANATION = """
- **accuracy**: on the test set after the last epoch, in %: mean of the seeds, and their standard deviation.
- **difference**: from the baseline's accuracy, in points. First interval (95 %): over seeds, by Student's t of the
  differences at equal seeds. Second interval (95 %): over test images, by a paired bootstrap with these weights.
- **verdict**: better or worse only if neither interval contains zero; everything else is noise, whatever the mean.
  There is no correction for the number of rows: one in twenty of such intervals excludes zero by chance. All rows share
  the seeds of their baseline, so their differences are correlated.
- **training**: time of a forward and a backward pass with a training batch in train mode; **inference**: of a forward
  pass in evaluation mode; both over the baseline's. All networks of a baseline run interleaved on one thread; each
  round gives one ratio of thread CPU times; the table shows their median and the range of 80 % of them.
- **MACs**: multiplications with additions in convolutions and matrix products, of one image; **kept**: memory that a
  training step keeps for its backward pass, of one image, over the baseline's.
"""


def write_report(
    results: Sequence[Result], seeds: Sequence[int], path: Path, *, title: str, remarks: Sequence[str], command: str
) -> str:
    """Writes the report as Markdown to `path`, and beside it as CSV and two pictures.

    Args:
        results: Its rows.
        seeds: The seeds of each network.
        path: A `.md` file.
        title: Its heading.
        remarks: Sentences that a reader of the table needs.
        command: What makes it again.

    Returns:
        The Markdown text.
    """
    draw_costs(results, path.with_name(f"{path.stem}-cost.png"))
    draw_learning(results, path.with_name(f"{path.stem}-learning.png"))
    _write_csv(results, seeds, path.with_suffix(".csv"))
    facts = surroundings("cpu")
    versions = versions_of(facts)
    plural = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    lines = [f"# {title}", "", *_findings(results, len(seeds)), ""]
    lines += [f"{len(results)} networks, one recipe, {plural} ({', '.join(map(str, seeds))}):", ""]
    lines += _table(results)
    lines += ["", *(f"- {remark}" for remark in remarks), *_EXPLANATION.strip().splitlines(), ""]
    lines += [f"![Accuracy over cost]({path.stem}-cost.png)", "", f"![Learning curves]({path.stem}-learning.png)", ""]
    lines += [
        f"Times and kept memory: {versions}; {facts['device']['name']}; float32; revision {facts['revision']}.",
        "",
    ]
    lines += [f"Made by `{command}`; the numbers in full are in [{path.stem}.csv]({path.stem}.csv).", ""]
    text = "\n".join(lines)
    with replacing(path) as temporary:
        temporary.write_text(text)
    return text


def _findings(results: Sequence[Result], seeds: int) -> list[str]:
    """What the table shows, in a few sentences."""
    compared = [row for row in results if row.difference is not None]
    differences = [(row.network, row.difference) for row in results if row.difference is not None]
    lines = []
    for verdict, words in (
        ("better", "More accurate than the baseline"),
        ("worse", "Less accurate than the baseline"),
        ("noise", "Not significantly different from the baseline"),
        ("one seed", "Trained with one seed only, which shows no significant difference"),
    ):
        if names := [_plain(network) for network, difference in differences if difference.verdict == verdict]:
            lines.append(f"- {words}: {', '.join(names)}.")
        elif verdict in ("better", "worse") and seeds > 1:
            lines.append(f"- {words}: none.")
    below = [difference.mean for _, difference in differences if difference.mean < 0]
    if below:
        lines.append(
            f"- Significant or not, {len(below)} of {len(compared)} score less than the baseline, the lowest by "
            f"{-100 * min(below):.2f} points."
        )
    noise = seed_noise([row.accuracies for row in results])
    if noise is not None:
        least = 2 * noise * math.sqrt(2 / seeds)
        lines.append(
            f"- Standard deviation between seeds, pooled over the rows: {100 * noise:.2f} points. Two means of "
            f"{seeds} seeds that differ by less than about {100 * least:.2f} points are not significantly different."
        )
    by_time = sorted(compared, key=lambda row: row.times["f+b"].median)
    times = [f"{row.times['f+b'].median:.2f} times ({_plain(row.network)})" for row in (by_time[0], by_time[-1])]
    return [*lines, f"- A training step takes from {times[0]} to {times[1]} as long as the baseline's."]


def _table(results: Sequence[Result]) -> list[str]:
    names = ["network", "parameters", "MACs (M)", "accuracy", "difference (seeds; images)", "verdict"]
    names += ["training", "inference", "kept"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in results:
        scores = [100 * accuracy for accuracy in row.accuracies]
        accuracy = f"{statistics.mean(scores):.2f}"
        accuracy += f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        cells = [_plain(row.network), f"{row.params:,}", f"{row.macs / 1e6:.2f}", accuracy]
        if row.difference is None or row.baseline is None:
            cells += ["", "baseline", "1", "1", f"1 ({row.kept / 1e3:.0f} kB)"]
        else:
            intervals = "; ".join(map(_interval, filter(None, (row.difference.seeds, row.difference.pictures))))
            cells += [f"{100 * row.difference.mean:+.2f} ({intervals})", row.difference.verdict]
            cells += [_ratio(row.times["f+b"]), _ratio(row.times["fwd"]), f"{row.kept / row.baseline.kept:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    noise = [ratio.noise for row in results if row.times for ratio in row.times.values()]
    low, high = min(low for low, _ in noise), max(high for _, high in noise)
    return [*lines, "", f"The baselines' times over their own, in the same rounds: {low:.2f} to {high:.2f}."]


def _write_csv(results: Sequence[Result], seeds: Sequence[int], path: Path) -> None:
    rows = []
    for row in results:
        facts: dict[str, object] = {"network": row.network, "baseline": row.baseline.network if row.baseline else ""}
        facts |= {"params": row.params, "macs": row.macs, "kept_bytes": row.kept}
        facts |= {f"seed_{seed}": f"{share:.4f}" for seed, share in zip(seeds, row.accuracies, strict=True)}
        facts["mean"] = f"{statistics.mean(row.accuracies):.5f}"
        difference = row.difference
        for name, interval in (
            ("seeds", difference and difference.seeds),
            ("images", difference and difference.pictures),
        ):
            facts |= {
                f"{name}_{end}": f"{value:.5f}" for end, value in zip(("low", "high"), interval or (), strict=False)
            }
        facts |= {"difference": f"{difference.mean:.5f}", "verdict": difference.verdict} if difference else {}
        for mode, name in (("f+b", "training"), ("fwd", "inference")):
            if row.times:
                ratio = row.times[mode]
                facts |= {f"{name}_time": f"{ratio.median:.3f}"}
                facts |= {f"{name}_time_low": f"{ratio.low:.3f}", f"{name}_time_high": f"{ratio.high:.3f}"}
        rows.append({**facts, "config": row.config})
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _plain(network: str) -> str:
    return f"`{network}`"

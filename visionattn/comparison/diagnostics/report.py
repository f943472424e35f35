"""The report of the diagnostics, and the page that says which attention is for which job."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from visionattn.data.synthetic.diagnostics import TASKS, solve
from visionattn.utils.files import replacing

from .costs import RowCost, measure
from .plots import draw_heat_map, draw_looks, draw_profiles, draw_tasks
from .recipe import Recipe
from .records import Record
from .rows import Row, first_of
from .training import DATA_SEED
from .verdicts import Verdict, export_verdicts, judge, plan_seeds

__all__ = ["collect_hits", "power_plan", "summary", "write_report"]

# Test scenes of each task that are drawn.
_SHOWN = 6
# Scenes that the reference solutions are asked about.
_SOLVED = 1_000
# Below these shares of the way from chance to ceiling a baseline has learnt nothing, and nothing follows from its row.
_LEARNT = 0.05
DIFFERENCE = 0.015


def write_report(
    records: Sequence[Record],
    rows: Sequence[Row],
    recipe: Recipe,
    source: str,
    out: Path,
    scale: str,
) -> str:
    """Writes the report, `<stem>-which.md` and the pictures.

    Args:
        records: All results of these rows, tasks and seeds.
        rows: The rows.
        recipe: The settings.
        source: A name in `SOURCES`.
        out: A `.md` file.
        scale: How the command names the recipe.

    Returns:
        The text of both pages.
    """
    hits = collect_hits(records, recipe)
    verdicts = {task: _verdicts(own, rows, task, recipe) for task, own in hits.items()}
    shown = [row for row in rows if any(row.name in own for own in hits.values())]
    costs: dict[str, RowCost] = {}
    for host in dict.fromkeys(row.host for row in shown):
        first = first_of(host)
        costs |= measure([first, *(row for row in shown if row.host == host and row != first)], recipe)
    ceilings = {task: float(solve(task, _SOLVED, size=recipe.size, source=source).mean()) for task in hits}
    scenes = {
        task: TASKS[task].make("test", _SHOWN, size=recipe.size, source=source, seed=DATA_SEED)[0] for task in hits
    }
    draw_tasks(scenes, out.with_name(f"{out.stem}-tasks.png"))
    looks = {(record.row, record.task): record.look for record in records if record.look is not None}
    if looks:
        draw_looks(shown, scenes, looks, out.with_name(f"{out.stem}-looks.png"))
    baselines = {row.name: first_of(row.host).name for row in shown}
    export_verdicts(verdicts, baselines, out.with_name(f"{out.stem}-verdicts.csv"))
    draw_heat_map(shown, verdicts, out.with_name(f"{out.stem}-heat-map.png"))
    draw_profiles(shown, verdicts, out.with_name(f"{out.stem}-profiles.png"))
    command = f"visionattn compare --suite diagnostics --scale {scale} --out {out.name}"
    lines = ["# Which attention for what: the visual attention diagnostics", ""]
    lines += _status(records, rows, recipe)
    lines += ["", *_explanation(recipe, source, records), "", "## The tasks", "", *_tasks(hits, ceilings, rows), ""]
    lines += [f"![Test scenes of each task, with their answers]({out.stem}-tasks.png)", ""]
    lines += ["## Power", "", *power_plan(hits, rows, recipe), ""]
    lines += ["## Mechanisms and abilities", "", f"![Heat map]({out.stem}-heat-map.png)", ""]
    lines += [*_table(shown, verdicts), "", f"![Profiles]({out.stem}-profiles.png)", ""]
    lines += ["## Cost", "", *_costs(shown, costs), "", "## Where attention looks", "", *_pointing(records, shown), ""]
    if looks:
        lines += [f"![Where attention looks in the first test scene of each task]({out.stem}-looks.png)", ""]
    lines += [f"Made by `{command}`; every training is a line of [{out.stem}.csv]({out.stem}.csv).", ""]
    which = [*_which(verdicts, hits, ceilings, costs, rows, _status(records, rows, recipe), out.name)]
    for path, text in ((out, "\n".join(lines)), (out.with_name(f"{out.stem}-which.md"), "\n".join(which))):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return "\n".join([*lines, *which])


def collect_hits(records: Sequence[Record], recipe: Recipe) -> dict[str, dict[str, np.ndarray]]:
    """Task -> row -> which scenes are right, `(seeds, scenes)`, of the first seeds that are finished without a gap."""
    by_key = {record.key: record for record in records}
    found: dict[str, dict[str, np.ndarray]] = {}
    for task in recipe.tasks:
        for row in dict.fromkeys(record.row for record in records):
            own = []
            for seed in recipe.seeds_of(row.partition("/")[0], task):
                if (record := by_key.get(f"{row}|{task}|{seed}")) is None:
                    break
                own.append(record.hits)
            if own:
                found.setdefault(task, {})[row] = np.stack(own)
    return found


def _verdicts(hits: Mapping[str, np.ndarray], rows: Sequence[Row], task: str, recipe: Recipe) -> dict[str, Verdict]:
    """Of all rows whose baseline has been trained."""
    found: dict[str, Verdict] = {}
    for host in dict.fromkeys(row.host for row in rows):
        first = first_of(host).name
        names = [row.name for row in rows if row.host == host and row.name in hits and row.name != first]
        if first in hits and names:
            known, planned = len(hits[first]), len(recipe.seeds_of(host, task))
            found |= judge({name: hits[name][:known] for name in names}, hits[first], planned)
    return found


def power_plan(hits: Mapping[str, Mapping[str, np.ndarray]], rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """How many seeds tell a difference of 1.5 points on each task, from the spread among the rows so far."""
    lines = [
        "| task | host | steps | spread between seeds | scenes that rows differ on | seeds for 1.5 points | here |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    enough: dict[str, dict[str, bool]] = {}
    for task, own in hits.items():
        for host in dict.fromkeys(row.host for row in rows):
            first = first_of(host).name
            names = [row.name for row in rows if row.host == host and row.name in own and row.name != first]
            gains = [own[n][: len(own[first])] * 1.0 - own[first][: len(own[n])] for n in names if first in own]
            gains = [gain for gain in gains if len(gain) > 1]
            if not gains:
                continue
            between = float(np.median([gain.mean(1).var(ddof=1) for gain in gains]))
            over = float(np.median([gain[0].var() for gain in gains]))
            compared = sum(row.host == host for row in rows) - 1
            seeds = plan_seeds(between, over, recipe.test_scenes(host, task), compared, DIFFERENCE)
            planned = len(recipe.seeds_of(host, task))
            wanted = "no number" if seeds is None else f"{seeds}"
            numbers = f"{100 * math.sqrt(between):.2f} | {100 * over:.1f} % | {wanted} | {planned}"
            lines.append(f"| {task} | {host} | {recipe.effort(host, task).steps:,} | {numbers} |")
            enough.setdefault(host, {})[task] = seeds is not None and seeds <= planned
    if len(lines) == 2:
        return ["No row has two seeds yet, so the spread between seeds is not known."]
    return [
        *lines,
        "",
        "Of the row in the middle, at 95 % for all rows of a host at once, told in four of five cases, with "
        f"{_test_scenes(recipe)}. The spread is the standard deviation, in points. What a row differs by "
        "from its baseline beyond its own interval is told with any number of seeds.",
        "",
        *(
            f"- {host}: 1.5 points are told at {sum(own.values())} of {len(own)} tasks: "
            f"{', '.join(task for task, told in own.items() if told) or 'none'}."
            for host, own in enough.items()
        ),
    ]


def _test_scenes(recipe: Recipe) -> str:
    """How many test scenes there are, in words."""
    counts = {(host, task): recipe.test_scenes(host, task) for host in recipe.efforts for task in recipe.tasks}
    others = [f"{count:,} of {task} in {host}" for (host, task), count in counts.items() if count != recipe.test]
    return f"{recipe.test:,} test scenes a task" + (f", but {' and '.join(others)}" if others else "")


def _status(records: Sequence[Record], rows: Sequence[Row], recipe: Recipe) -> list[str]:
    counts = [len(recipe.seeds_of(row.host, task)) for row in rows for task in recipe.tasks]
    trained = sorted(set(counts))
    seeds = f"{trained[0]}" if len(trained) == 1 else f"{trained[0]} to {trained[-1]}"
    if len(records) == sum(counts):
        return [f"Complete: {len(rows)} rows, {len(recipe.tasks)} tasks, {seeds} seeds."]
    return [
        f"**Unfinished: {len(records):,} of {sum(counts):,} results.** Rows with fewer seeds than planned have no "
        "verdict, whatever their means say."
    ]


def _explanation(recipe: Recipe, source: str, records: Sequence[Record]) -> list[str]:
    seconds = sum({(r.row, r.trained_on, r.seed): r.train_seconds for r in records}.values())
    revisions: dict[str, set[str]] = {}
    for record in records:
        where = f"{record.facts['versions']}, {record.facts['machine']}"
        revisions.setdefault(where, set()).add(record.facts["revision"])
    left = [name for name in TASKS if name not in recipe.tasks]
    without = f" Left out, since at this scale networks stay at chance there: {', '.join(left)}." if left else ""
    made = "; ".join(f"{where}, revision {', '.join(sorted(own))}" for where, own in sorted(revisions.items()))
    return [
        f"Small generated tasks ({source}) that each ask for one ability. Every plug-in stands in every block of one "
        "narrow ResNet, every mixer in one pyramid or, where its card names none, in one plain transformer. Scenes of "
        f"{recipe.size} px, {recipe.batch} a step; AdamW with one cycle of the rate; one recipe for all rows of a "
        f"host. {seconds / 3600:.1f} hours of processor time for training.",
        "",
        "A difference is that of the share of right test scenes from the first row of the host, at equal seeds and "
        "scenes. Its interval holds for all rows of the host and task at once (95 %, Bonferroni), over other seeds and "
        "other scenes; rows share the seeds of their baseline. **better** and **worse**: zero is outside; **not told "
        "apart**: a difference within ±x is not excluded. h is Cohen's effect size: 0.2 small, 0.5 medium, 0.8 large.",
        "",
        "These are tiny networks and short trainings: they show what a mechanism makes easy to learn, not what it is "
        f"worth in a large network.{without} Records: {made}.",
    ]


def _tasks(
    hits: Mapping[str, Mapping[str, np.ndarray]], ceilings: Mapping[str, float], rows: Sequence[Row]
) -> Iterator[str]:
    firsts = [first_of(host).name for host in dict.fromkeys(row.host for row in rows)]
    yield f"| task | question | chance | without the ability | ceiling | {' | '.join(firsts)} |"
    yield "|---|---|---|---|---|" + "---|" * len(firsts)
    for task, own in hits.items():
        about = TASKS[task]
        cells = [task, about.question, *(f"{100 * x:.1f}" for x in (about.chance, about.shortcut, ceilings[task]))]
        cells += [f"{100 * own[name].mean():.1f}" if name in own else "" for name in firsts]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield (
        "In %. Chance is answering without looking; *without the ability* reads the objects and picks one; the ceiling "
        f"is the reference solution's, which knows the places and reads the pixels there ({_SOLVED:,} test scenes)."
    )


def _table(rows: Sequence[Row], verdicts: Mapping[str, Mapping[str, Verdict]]) -> Iterator[str]:
    yield f"| row | {' | '.join(verdicts)} |"
    yield f"|---|{'---|' * len(verdicts)}"
    for row in rows:
        cells = [
            _cell(own.get(row.name), row, any(n.startswith(f"{row.host}/") for n in own)) for own in verdicts.values()
        ]
        yield f"| {'**' + row.name + '**' if row.baseline else row.name} | {' | '.join(cells)} |"
    yield ""
    yield "Baselines in bold. Points of difference, with the half of the interval, h, and the verdict."


def _cell(verdict: Verdict | None, row: Row, asked: bool) -> str:
    if verdict is None:
        return "baseline" if asked and row == first_of(row.host) else ""
    points = f"{100 * verdict.difference:+.1f}"
    if verdict.word == "unfinished":
        plural = "seed" if verdict.seeds == 1 else "seeds"
        return f"{points} ({verdict.seeds} {plural})"
    return f"{points} ± {100 * verdict.half:.1f}, h {verdict.effect:+.2f}: {verdict.word}"


def _costs(rows: Sequence[Row], costs: Mapping[str, RowCost]) -> Iterator[str]:
    yield "| row | parameters | MACs (M) | kept (kB) | training | inference | growth with N, card | measured |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        cost = costs[row.name]
        numbers = [f"{cost.params:,}", f"{cost.macs / 1e6:.2f}", f"{cost.kept / 1e3:.0f}"]
        numbers += [f"{cost.training:.2f}", f"{cost.inference:.2f}", row.cost, f"N^{cost.growth:.2f}"]
        yield f"| {row.name} | {' | '.join(numbers)} |"
    yield ""
    yield (
        "Times are medians of thread CPU times, in turns on one thread, over those of the first row of the host; kept "
        "is what a training step keeps for its backward pass, of one scene. Measured growth: of the whole network's "
        "inference, from one side of the scene to twice that."
    )


def _pointing(records: Sequence[Record], rows: Sequence[Row]) -> Iterator[str]:
    found = {(r.row, r.task): r for r in records if not math.isnan(r.pointing)}
    tasks = list(dict.fromkeys(task for _, task in found))
    if not found:
        yield "No row with a map is finished yet."
        return
    yield f"| row | {' | '.join(tasks)} |"
    yield f"|---|{'---|' * len(tasks)}"
    for row in rows:
        own = [found.get((row.name, task)) for task in tasks]
        if any(own):
            cells = ["" if r is None else f"{100 * r.pointing:.0f} ({100 * r.pointing_chance:.0f})" for r in own]
            yield f"| {row.name} | {' | '.join(cells)} |"
    yield ""
    yield (
        "Share of 200 test scenes, in %, in which the map of the last attention (spatial factor of a plug-in, mean "
        "over its channels; what the positions of a mixer look at, mean over them and the heads) is largest on the "
        "objects that the answer follows from; in brackets the share of the scene that these cover. First seed. Rows "
        "without a spatial map have none."
    )


def _which(
    verdicts: Mapping[str, Mapping[str, Verdict]],
    hits: Mapping[str, Mapping[str, np.ndarray]],
    ceilings: Mapping[str, float],
    costs: Mapping[str, RowCost],
    rows: Sequence[Row],
    status: Sequence[str],
    report: str,
) -> Iterator[str]:
    yield "# Which attention for which job"
    yield ""
    yield from status
    yield ""
    yield (
        f"Only what the numbers of the [diagnostics]({report}) carry. Points are those of the share of right test "
        "scenes, against the first row of the host; a row that is not named at a task is not told apart there."
    )
    yield ""
    yield from summary(verdicts, rows)
    for task, own in verdicts.items():
        about = TASKS[task]
        yield ""
        yield f"## {task}: {about.question}"
        yield ""
        hosts = list(dict.fromkeys(row.host for row in rows))
        firsts = [first_of(host).name for host in hosts if first_of(host).name in hits[task]]
        known = [f"{name} {100 * hits[task][name].mean():.1f} %" for name in firsts]
        yield (
            f"First rows: {', '.join(known)}. The ceiling is {100 * ceilings[task]:.1f} %, without the ability it is "
            f"{100 * about.shortcut:.0f} %."
        )
        yield ""
        for host in hosts:
            first = first_of(host).name
            if first not in hits[task]:
                continue
            names = [row.name for row in rows if row.host == host and row.name in own]
            learnt = [n for n in (first, *names) if _learnt(float(hits[task][n].mean()), about.chance, ceilings[task])]
            if not learnt:
                yield f"- {host}: nothing has learnt this task at this scale, so it says nothing."
                continue
            words = {
                word: sorted((n for n in names if own[n].word == word), key=lambda n: -own[n].difference)
                for word in ("better", "worse", "not told apart", "unfinished")
            }
            for word in ("better", "worse"):
                listed = ", ".join(
                    f"{n.split('/')[1]} ({100 * own[n].difference:+.1f} points, training {costs[n].training:.1f} times)"
                    for n in words[word]
                )
                if listed or not words["unfinished"]:
                    yield f"- {host}, {word} than {first.split('/')[1]}: {listed or 'none'}."
            if apart := words["not told apart"]:
                least = min(max(abs(own[n].difference) + own[n].half for n in apart), 1.0)
                count = "1 row" if len(apart) == 1 else f"{len(apart)} rows"
                yield f"- {host}, not told apart: {count}, none by more than {100 * least:.1f} points."
            if words["unfinished"]:
                yield f"- {host}, unfinished: {len(words['unfinished'])} rows."
    yield ""


def summary(verdicts: Mapping[str, Mapping[str, Verdict]], rows: Sequence[Row]) -> Iterator[str]:
    """Who gains somewhere, who only loses, and who cannot be told from the first row of the host anywhere."""
    sides: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        # A task may be left out in a host.
        asked = [
            task for task, found in verdicts.items() if any(one.name in found for one in rows if one.host == row.host)
        ]
        judged = {task: verdicts[task][row.name] for task in asked if row.name in verdicts[task]}
        if judged and len(judged) == len(asked) and all(one.word != "unfinished" for one in judged.values()):
            sides[row.name] = {
                word: [f"{task} ({100 * one.difference:+.1f})" for task, one in judged.items() if one.word == word]
                for word in ("better", "worse", "not told apart")
            }
    if not sides:
        yield "No row has all its seeds on all its tasks yet."
        return
    yield "| row | better at | worse at | not told apart |"
    yield "|---|---|---|---|"
    hosts = list(dict.fromkeys(name.partition("/")[0] for name in sides))
    for name, own in sorted(
        sides.items(),
        key=lambda item: (hosts.index(item[0].partition("/")[0]), len(item[1]["worse"]) - len(item[1]["better"])),
    ):
        cells = [
            ", ".join(own["better"]),
            ", ".join(own["worse"]),
            f"{len(own['not told apart'])} of {sum(map(len, own.values()))}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"
    groups = {
        "Better at something and worse at nothing": [n for n, o in sides.items() if o["better"] and not o["worse"]],
        "Better at some and worse at others": [n for n, o in sides.items() if o["better"] and o["worse"]],
        "Losers, worse at something and better at nothing": [
            n for n, o in sides.items() if o["worse"] and not o["better"]
        ],
        "Not told apart at any task": [n for n, o in sides.items() if not o["better"] and not o["worse"]],
    }
    yield ""
    for title, names in groups.items():
        yield f"- {title}: {', '.join(names) or 'none'}."


def _learnt(share: float, chance: float, ceiling: float) -> bool:
    return share > chance + _LEARNT * (ceiling - chance)

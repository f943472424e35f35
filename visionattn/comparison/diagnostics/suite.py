"""A run of the diagnostics: what is not trained yet is trained, some at a time, and the report is written."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from visionattn.benchmark.record import surroundings
from visionattn.data.synthetic.diagnostics import TASKS, find_source
from visionattn.profiling.cost import count_macs
from visionattn.utils.tables import format_table

from .looking import LOOKED, look, pointing
from .recipe import RECIPES, Recipe
from .records import Record, export, load_records, restore
from .report import collect_hits, power_plan, write_report
from .rows import Row, choose_rows
from .training import load_scenes, train

__all__ = ["dry_run", "run_diagnostics", "train_again", "train_row"]


def run_diagnostics(
    out: Path,
    work_dir: Path,
    *,
    scale: str = "small",
    rows: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 2,
    minutes: float | None = None,
    source: str | None = None,
) -> str:
    """Trains what is not finished yet, seed by seed and the baselines first, then writes the report.

    Args:
        out: The report, a `.md` file; the table, what each row got right, and pictures go beside it. A run resumes
            from them too, so that it can go on where only the report was kept.
        work_dir: Where the results of single trainings and the scenes go, or lie already.
        scale: A name in `RECIPES`.
        rows: Names of rows or mechanisms; `all` are all mixers; by default all plug-ins and one mixer of each kind.
        tasks: Names of tasks; by default all.
        seeds: Seeds; by default the scale's.
        jobs: How many trainings at a time, each in a process on one thread.
        minutes: No training is started later than this; the report says then that it is unfinished.
        source: A name in `SOURCES`; by default with clothes where Fashion-MNIST is installed.

    Returns:
        The report.

    Raises:
        ValueError: If a name is unknown.
    """
    recipe = choose(scale, tasks, seeds)
    chosen = choose_rows(rows)
    source = source or find_source()
    fits, folder = partial(_fits, recipe, source), work_dir / scale
    if restored := restore(out.with_suffix(".csv"), folder / "records", fits):
        print(f"took {restored} results from {out.with_suffix('.csv')}", flush=True)
    done = load_records(folder / "records", fits)
    trainings = [
        (row, task.name, seed)
        for seed in sorted(
            {seed for row in chosen for task in recipe.trained for seed in recipe.seeds_of(row.host, task.name)}
        )
        for row in chosen
        for task in recipe.trained
        if seed in recipe.seeds_of(row.host, task.name)
    ]
    pending = [
        (row, task, seed)
        for row, task, seed in trainings
        if any(f"{row.name}|{tested.name}|{seed}" not in done for tested in recipe.tested(TASKS[task]))
    ]
    done_before = len(trainings) - len(pending)
    print(f"{done_before} of {len(trainings)} trainings are finished, {len(pending)} to go", flush=True)
    print("\n".join(power_plan(collect_hits([*done.values()], recipe), chosen, recipe)), flush=True)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    if jobs == 1:
        for one in pending:
            _tell(train_row(*one, recipe, source, folder, deadline))
    elif pending:
        for host, name in {(row.host, name) for row, name, _ in pending}:  # once, before all processes want them
            load_scenes(TASKS[name], "train", host, recipe, source, folder / "scenes")
            for tested in recipe.tested(TASKS[name]):
                load_scenes(tested, "test", host, recipe, source, folder / "scenes")
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            running = [pool.submit(train_row, *one, recipe, source, folder, deadline) for one in pending]
            for future in as_completed(running):
                _tell(future.result())
    wanted = {
        f"{row.name}|{task}|{seed}"
        for row in chosen
        for task in recipe.tasks
        for seed in recipe.seeds_of(row.host, task)
    }
    everything = load_records(folder / "records", fits)
    records = [record for key, record in everything.items() if key in wanted]
    if not records:
        raise ValueError("nothing is finished yet: give more minutes")
    out.parent.mkdir(parents=True, exist_ok=True)
    export(everything.values(), out.with_suffix(".csv"))
    return write_report(records, chosen, recipe, source, out, scale)


def train_again(
    out: Path,
    work_dir: Path,
    count: int,
    *,
    scale: str = "small",
    rows: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    source: str | None = None,
) -> str:
    """Trains some of the finished rows a second time, each on one task with one seed; nothing is kept of it.

    Args:
        out: As in `run_diagnostics`.
        work_dir: As there.
        count: How many rows. Which they are, and their tasks and seeds, is drawn from the number of finished results.
        scale: As there.
        rows: As there.
        tasks: As there.
        seeds: As there.
        source: As there.

    Returns:
        For each training whether it gave the same answer to every test scene, as a table. Only the same versions on the
        same kind of machine can be expected to.

    Raises:
        ValueError: If fewer rows are finished, or a name is unknown.
    """
    recipe = choose(scale, tasks, seeds)
    source = source or find_source()
    folder = work_dir / scale
    fits = partial(_fits, recipe, source)
    restore(out.with_suffix(".csv"), folder / "records", fits)
    done = load_records(folder / "records", fits)
    finished = {}
    for row in choose_rows(rows):
        keys = [(task, seed) for task in recipe.trained for seed in recipe.seeds_of(row.host, task.name)]
        if own := [key for key in keys if f"{row.name}|{key[0].name}|{key[1]}" in done]:
            finished[row] = own
    if len(finished) < count:
        raise ValueError(f"{count} rows were to be trained again, but only {len(finished)} are finished")
    rng = np.random.default_rng(len(done))
    torch.set_num_threads(1)
    table, same = [("row", "task", "seed", "first", "again", "other answers")], 0
    for at in rng.permutation(len(finished))[:count]:
        row, own = [*finished.items()][at]
        task, seed = own[rng.integers(len(own))]
        _, outcome = train(row, task, seed, recipe, source, folder / "scenes")
        differ = 0
        for tested, hits in outcome.hits.items():
            if (first := done.get(f"{row.name}|{tested}|{seed}")) is not None:
                other = int((hits != first.hits).sum())
                shares = (f"{100 * one.mean():.2f} %" for one in (first.hits, hits))
                table.append((row.name, tested, f"{seed}", *shares, f"{other}"))
                differ += other
        same += differ == 0
    return f"{format_table(table)}\n{same} of {count} trainings gave the same answer to every test scene"


def choose(scale: str, tasks: Sequence[str], seeds: Sequence[int]) -> Recipe:
    """The recipe of a scale with other tasks or seeds.

    Raises:
        ValueError: If a task is unknown, or is tested on networks of one that is left out.
    """
    recipe = RECIPES[scale]
    for name in tasks:
        if name not in TASKS:
            raise ValueError(f"--tasks: there is no task {name!r}; there are: {', '.join(TASKS)}")
        if (needed := TASKS[name].trained_on) and needed not in tasks:
            raise ValueError(f"--tasks: {name} tests the networks of {needed}: name that too")
    if tasks:
        recipe = replace(recipe, tasks=tuple(tasks))
    return replace(recipe, seeds=tuple(seeds))


def train_row(
    row: Row, task: str, seed: int, recipe: Recipe, source: str, folder: Path, deadline: float | None = None
) -> list[Record]:
    """Trains one row on one task with one seed; its results go to files of their own.

    Args:
        row: The row.
        task: Name of a task that has networks of its own.
        seed: The seed.
        recipe: The settings.
        source: A name in `SOURCES`.
        folder: Where scenes and results go.
        deadline: On the monotonic clock: nothing is done later.

    Returns:
        The results, none after the deadline.
    """
    if deadline is not None and time.monotonic() > deadline:
        return []
    torch.set_num_threads(1)  # sums come in one order however many cores there are
    facts = {**_facts(recipe.device), "source": source}
    model, outcome = train(row, TASKS[task], seed, recipe, source, folder / "scenes")
    records = []
    for tested, hits in outcome.hits.items():
        score, chance, seen = float("nan"), float("nan"), None
        if seed == recipe.seeds_of(row.host, task)[0]:
            scenes = load_scenes(TASKS[tested], "test", row.host, recipe, source, folder / "scenes")[0]
            maps = look(model, scenes, LOOKED)
            score, chance = pointing(maps, scenes)
            if maps is not None:
                seen = (255 * maps[0].numpy()).astype(np.uint8)
        own = {**facts, "settings": recipe.digest(source, row.host, tested)}
        records.append(Record(row.name, tested, task, seed, hits, outcome.train_seconds, score, chance, own, seen))
        records[-1].save(folder / "records")
    return records


def dry_run(scale: str, rows: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()) -> str:
    """Builds every network of a scale without memory and says what would be trained, as a table.

    Args:
        scale: As in `run_diagnostics`.
        rows: As there.
        tasks: As there.
        seeds: As there.

    Raises:
        ValueError: If a name is unknown, or a network does not take its scenes.
    """
    recipe = choose(scale, tasks, seeds)
    chosen = choose_rows(rows)
    table = [("row", "parameters", "MACs (M)")]
    for row in chosen:
        with torch.device("meta"):
            model = row.build(recipe, 10)
        macs = count_macs(model, (3, recipe.size, recipe.size), batch=2)
        table.append((row.name, f"{sum(p.numel() for p in model.parameters()):,}", f"{macs / 1e6:.1f}"))
    efforts, count = [("host", "task", "steps", "seeds")], 0
    for host in dict.fromkeys(row.host for row in chosen):
        for task in recipe.trained:
            planned = len(recipe.seeds_of(host, task.name))
            count += planned * sum(row.host == host for row in chosen)
            efforts += [(host, task.name, f"{recipe.effort(host, task.name).steps:,}", f"{planned}")]
    facts = f"{len(chosen)} rows, {len(recipe.trained)} tasks to train and {len(recipe.tasks)} to test: {count:,} "
    facts += f"trainings with {recipe.batch} scenes of {recipe.size} px a step on {recipe.device}"
    return f"{format_table(table)}\n{format_table(efforts)}\n{facts}"


def _fits(recipe: Recipe, source: str, record: Record) -> bool:
    """Whether a record was made with the settings of a run."""
    host = record.row.partition("/")[0]
    return record.task in TASKS and record.facts["settings"] == recipe.digest(source, host, record.task)


def _tell(records: Sequence[Record]) -> None:
    for record in records:
        text = f"{record.row}, {record.task}, seed {record.seed}: {100 * record.hits.mean():.1f} %"
        print(f"{text} ({record.train_seconds:.0f} s)", flush=True)


@cache
def _facts(device: str) -> dict[str, str]:
    found = surroundings(device)
    versions = " ".join(f"{name} {version}" for name, version in found["versions"].items())
    return {"revision": found["revision"], "versions": versions, "machine": found["device"]["name"]}

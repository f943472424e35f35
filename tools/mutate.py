"""Plants small faults in the package, one at a time, and runs the nearest tests: each fault must make one of them fail.

    python tools/mutate.py                                 # a sample of 66, from the beginning
    python tools/mutate.py --resume --seconds 250          # go on with it, for about so long
    python tools/mutate.py --resume --survivors            # the survivors again, after tests were added
    python tools/mutate.py --only visionattn/ops/losses.py --count 20 --results /tmp/losses.json
    python tools/mutate.py --only visionattn/ops/losses.py --list       # what could be planted there; runs nothing

The tree itself is never touched: all happens in a copy in the temporary folder, which goes when the command ends. The
sample depends on --seed and on the code alone. Faults that lived once (`PINNED`) are always in it. The nearest files of
tests bear the name of the changed file, import it or name what it defines; then come those of the modules that import
it, and the contracts of the mechanisms that use it. Each is run once without a fault, to see which tests fail
anyway (they are left out) and which reach the changed line: those are run, the fastest first. --survivors runs whole
files, since what tests do in other processes, or only once for all of them, is not seen.

Read the result (--results, JSON) as: `killed` by a test, `timeout` (it hangs: killed, too), `survived`: look at it.
Either a test is missing, or the change changes nothing; then enter it into `EQUIVALENT` with the reason. `--report`
prints the table of docs/results/mutation.md.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from mutants import OPERATORS, Mutant, mutants_of
from nearest_tests import Suite, nearest
from reached import Reached, span

ROOT = Path(__file__).parents[1]
ROOMS = ("ops", "plugins", "mixers", "engine", "checkpoints")
# Kernels need a GPU or minutes in an interpreter; what a command only prints in --help is text.
LEFT_OUT = ("ops/triton/", "__init__.py", "__main__.py")
# Lived until there was a test: path, text before, text after.
PINNED = (
    ("visionattn/engine/seeding.py", "(runner.seed, runner.rank, runner.iter)", "(runner.seed, runner.iter)"),
    ("visionattn/ops/_dispatch.py", "4 * 2**20", "8 * 2**20"),
    ("visionattn/cli/predict.py", '("topk", "score") if (value', '("topk",) if (value'),
)
# Change nothing that could be seen: path, text before, text after, and why.
EQUIVALENT: dict[tuple[str, str, str], str] = {}
PRELOADED = ("pytest", "xdist", "numpy", "torch", "torchvision", "timm", "cv2", "albumentations", "mmengine.runner")
DEFAULT_RESULTS = ROOT / "docs" / "results" / "mutation.json"


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; go on by --resume"))
    mutants = candidates(options.only)
    if options.list:
        print("\n".join(f"{m.path}:{m.line}  {m.operator:10} {m.before!r} -> {m.after!r}" for m in mutants))
        return
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.report:
        print(report(results))
        return
    if not options.resume or not results:
        chosen = sample(mutants, options, [] if options.only else pinned())
        results = {"seed": options.seed, "of": len(mutants), "suites": {}, "mutants": [entry(m) for m in chosen]}
        save(results, options.results)
    if options.survivors:
        for one in results["mutants"]:
            if one["outcome"] == "survived" and not equivalent(one):
                one.update(outcome=None, whole=True)
    run(results, options)
    if all(one["outcome"] for one in results["mutants"]):  # done: what only the next fault would have needed goes
        for known in results["suites"].values():
            known.pop("file", None), known.pop("reaching", None)
        save(results, options.results)
    print(summary(results))


def parse() -> argparse.Namespace:
    operators = "\n".join(f"  {name:10} {text}" for name, text in OPERATORS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"kinds of faults:\n{operators}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=66, help="how many faults to plant (default: 66)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--files", type=int, default=3, help="from how many files of each room (default: 3)")
    parser.add_argument("--only", metavar="PATH", help="a file or a folder of the package, relative to the root")
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help="JSON (default: docs/results/...)")
    parser.add_argument("--resume", action="store_true", help="go on with the sample in the results")
    parser.add_argument("--survivors", action="store_true", help="with --resume: against whole files of tests")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no other fault after so long")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120,
        help="leave out what a file of tests has not run within so many seconds",
    )
    parser.add_argument("--nearest", type=int, default=6, help="how many files of tests at most (default: 6)")
    parser.add_argument("--list", action="store_true", help="show what could be planted, and run nothing")
    parser.add_argument("--report", action="store_true", help="print the results as a table, and run nothing")
    return parser.parse_args()


def candidates(only: str | None) -> list[Mutant]:
    """All that can be planted: those that compile."""
    places = [ROOT / only] if only else [ROOT / "visionattn" / room for room in ROOMS]
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    found = []
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        if only or not any(part in path for part in LEFT_OUT):
            source = file.read_text(encoding="utf-8")
            found += [mutant for mutant in mutants_of(path, source) if compiles(mutant, source)]
    if not found:
        sys.exit(f"nothing can be planted in {only or ROOMS}")
    return found


def compiles(mutant: Mutant, source: str) -> bool:
    try:
        compile(mutant.apply(source), mutant.path, "exec")
    except SyntaxError:
        return False
    return True


def pinned() -> list[Mutant]:
    found = []
    for path, before, after in PINNED:
        source = (ROOT / path).read_text(encoding="utf-8")
        if source.count(before) != 1:
            sys.exit(f"{path} has no single {before!r} any more: adapt PINNED")
        start = source.index(before)
        found.append(Mutant(path, source.count("\n", 0, start) + 1, "pinned", before, after, start))
    return found


def sample(mutants: list[Mutant], options: argparse.Namespace, first: list[Mutant]) -> list[Mutant]:
    """As many of each room as of any other, at most one a line, from a few files of each, whose tests run once more."""
    rooms: dict[str, dict[str, list[Mutant]]] = {}
    for mutant in mutants:
        rooms.setdefault(mutant.path.split("/")[1], {}).setdefault(mutant.path, []).append(mutant)
    waiting = {}
    for room, files in sorted(rooms.items()):
        draw = random.Random(f"{options.seed} {room}")
        waiting[room] = [
            mutant for path in draw.sample(sorted(files), min(options.files, len(files))) for mutant in files[path]
        ]
        draw.shuffle(waiting[room])
    chosen, lines = list(first), {(mutant.path, mutant.line) for mutant in first}
    while len(chosen) < options.count and any(waiting.values()):
        for left in waiting.values():
            while left and (left[-1].path, left[-1].line) in lines:
                left.pop()
            if left and len(chosen) < options.count:
                chosen.append(mutant := left.pop())
                lines.add((mutant.path, mutant.line))
    return sorted(chosen, key=lambda mutant: (mutant.path, mutant.start))


def entry(mutant: Mutant) -> dict:
    fields = {name: getattr(mutant, name) for name in ("path", "line", "start", "operator", "before", "after")}
    return {**fields, "outcome": None, "by": None, "seconds": None, "whole": False}


def run(results: dict, options: argparse.Namespace) -> None:
    """Plants what has no outcome yet."""
    end = time.monotonic() + options.seconds
    waiting = [number for number, one in enumerate(results["mutants"]) if one["outcome"] is None]
    if not waiting:
        return
    head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    results["revision"] = head.stdout.strip() or None
    preload()
    with tree() as copy:
        for number in waiting:
            one = results["mutants"][number]
            one["outcome"], one["by"], one["seconds"] = tried(number, copy, results, options, end)
            save(results, options.results)
            if one["outcome"] is None:
                break
            print(
                f"{one['outcome']:9} {one['seconds']:5.1f} s  {one['path']}:{one['line']} {one['operator']}", flush=True
            )


def tried(
    number: int, copy: Path, results: dict, options: argparse.Namespace, end: float
) -> tuple[str | None, str | None, float]:
    """Plants one fault and runs the nearest tests that reach it: what came of it, by which test, in how many seconds.

    No outcome means that the time was over.
    """
    one = results["mutants"][number]
    file = copy / one["path"]
    source = file.read_text(encoding="utf-8")
    mutant = found_again(one, source)
    if mutant is None:
        return "gone", None, 0.0
    one["line"], one["start"] = mutant.line, mutant.start
    total, reached = 0.0, False
    for suite in nearest(one["path"], ROOT, options.nearest):
        if time.monotonic() > end:
            return None, None, 0.0
        known = measured(suite, copy, results, options)
        whole = one["whole"] or span(source, mutant.start) is None
        tests = known["reaching"].get(str(number), [])
        if whole and known["passing"]:
            tests = [*suite.arguments, *(part for test in known["failing"] for part in ("--deselect", test))]
        if tests:
            reached = True
            file.write_text(mutant.apply(source), encoding="utf-8")
            # One that is only slow is not taken for hanging.
            found, by, seconds = outcome(tests, copy, 20 + 3 * known["seconds"])
            file.write_text(source, encoding="utf-8")
            total = round(total + seconds, 1)
            if found != "survived":
                return found, by, total
    return "survived", None if reached else "none of the nearest tests runs it", total


def found_again(one: dict, source: str) -> Mutant | None:
    """A fault of the results in the file as it is now; none if the code that it changes is gone."""
    mutant = Mutant(*(one[name] for name in ("path", "line", "operator", "before", "after", "start")))
    places = [at for at in range(len(source)) if source.startswith(mutant.before, at)]
    if not places:
        return None
    at = min(places, key=lambda place: abs(place - mutant.start))
    return replace(mutant, start=at, line=source.count("\n", 0, at) + 1)


def preload() -> None:
    """Imports once what every run would import again; the package itself is imported by each."""
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", PYTHONDONTWRITEBYTECODE="1", OMP_WAIT_POLICY="PASSIVE")
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        __import__(name)
    loaded = [name for name in sys.modules if name.split(".")[0] == "visionattn"]
    assert not loaded, loaded


@contextlib.contextmanager
def tree():
    """A copy of what tests need; large files are linked."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "tree"
        skip = shutil.ignore_patterns(
            ".git", "__pycache__", ".*_cache", "golden", "work_dirs", "*.safetensors", "build"
        )
        shutil.copytree(ROOT, copy, ignore=skip)
        for place in (ROOT / "tests" / "golden", *(ROOT / "checkpoints").glob("*.safetensors")):
            (copy / place.relative_to(ROOT)).symlink_to(place)
        yield copy


def measured(suite: Suite, copy: Path, results: dict, options: argparse.Namespace) -> dict:
    """What a suite does without a fault, remembered while its file stays as it is.

    Tests that fail, and those that do not run within the limit of time, are left out.
    """
    digest = hashlib.sha256((copy / suite.file).read_bytes()).hexdigest()[:12]
    known = results["suites"].get(suite.name)
    if known is None or known.get("file") != digest:
        record = copy.parent / "reached"
        record.unlink(missing_ok=True)
        follower = Reached(copy, {one["path"] for one in results["mutants"]}, record)
        _, _, seconds = outcome(["--maxfail=0", *suite.arguments], copy, options.timeout, follower)
        tests, shared = follower.read()
        passing = sorted((test for test in tests if tests[test][0]), key=lambda test: tests[test][1])
        spans = {}
        for number, one in enumerate(results["mutants"]):
            lines = span((copy / one["path"]).read_text(encoding="utf-8"), one["start"])
            spans[str(number)] = {(one["path"], line) for line in lines or ()}
        known = {
            "file": digest,
            "seconds": seconds,
            "passing": len(passing),
            "failing": [test for test in tests if not tests[test][0]],
            "reaching": {
                number: found
                for number, lines in spans.items()
                if (found := passing if lines & shared else [test for test in passing if lines & tests[test][2]])
            },
        }
        results["suites"][suite.name] = known
        left_out = f", {len(known['failing'])} fail unchanged" if known["failing"] else ""
        print(f"  {len(passing)} pass in {seconds:.1f} s{left_out}: {suite.name}", flush=True)
        save(results, options.results)
    return known


def outcome(
    tests: list[str], copy: Path, timeout: float, follower: Reached | None = None
) -> tuple[str, str | None, float]:
    """Runs tests until one fails: what came of it, by which test, in how many seconds."""
    log, begun = copy.parent / "log", time.monotonic()
    process = os.fork()
    if process == 0:
        _child(tests, copy, log, follower)
    ended, status = 0, 0
    try:
        while not ended and time.monotonic() < begun + timeout:
            time.sleep(0.05)
            ended, status = os.waitpid(process, os.WNOHANG)
    finally:  # also what the tests have started, and also where this is stopped itself
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
        if not ended:
            os.waitpid(process, 0)
    seconds = round(time.monotonic() - begun, 1)
    if not ended:
        return "timeout", None, seconds
    if status == 0:
        return "survived", None, seconds
    failed = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return "killed", failed[0].split(" - ")[0].split(" ", 1)[1] if failed else "the process ended", seconds


def _child(tests: list[str], copy: Path, log: Path, follower: Reached | None) -> None:
    import pytest

    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this was started in the background
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(log if stream else os.devnull, flags, 0o600), stream)
    os.dup2(1, 2)
    code = 1
    try:
        os.chdir(copy)
        sys.path[:] = [str(copy), *(p for p in sys.path if p not in ("", str(ROOT), str(ROOT / "tools")))]
        os.environ["PYTHONPATH"] = str(copy)
        fixed = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-rfE", f"--basetemp={copy.parent}/tmp"]
        found = pytest.main([*fixed, *tests], [follower] if follower else None)
        code = 0 if found in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else int(found)
    finally:
        os._exit(code)


def save(results: dict, path: Path) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


def counts(results: dict) -> Counter:
    """Outcomes, with explained survivors as `equivalent`."""
    return Counter(state(one) for one in results["mutants"])


def state(one: dict) -> str:
    return "equivalent" if one["outcome"] == "survived" and equivalent(one) else one["outcome"] or "waiting"


def equivalent(one: dict) -> str:
    """Why a fault changes nothing; empty for all others."""
    return EQUIVALENT.get((one["path"], one["before"], one["after"]), "")


def summary(results: dict) -> str:
    found = counts(results)
    dead = found["killed"] + found["timeout"]
    tried = dead + found["survived"]
    share = f"{100 * dead / tried:.1f} %" if tried else "none"
    parts = ", ".join(f"{number} {name}" for name, number in sorted(found.items()))
    drawn = (
        f"{len(results['mutants'])} of {results['of']:,} possible (seed {results['seed']}, {results.get('revision')})"
    )
    return f"{drawn}: {parts}; {share} killed"


def report(results: dict) -> str:
    lines = [summary(results), "", "| place | kind | before | after | outcome | by |", "|---|---|---|---|---|---|"]
    for one in results["mutants"]:
        texts = (" ".join(one[name].split()).replace("|", "\\|") for name in ("before", "after"))
        before, after = (f"`{text if len(text) < 60 else text[:57] + '...'}`" for text in texts)
        by = (equivalent(one) or one["by"] or "").replace("|", "\\|")
        lines.append(f"| {one['path']}:{one['line']} | {one['operator']} | {before} | {after} | {state(one)} | {by} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

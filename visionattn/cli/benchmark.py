"""`visionattn benchmark`."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SUMMARY = "compare the speed of plug-ins, mixers and networks with other implementations of the same weights"
EXAMPLES = (
    "--plugins cbam --shapes 4x128x28x28              # a table on the terminal",
    "--suite cpu --json docs/results/cpu.json         # all that runs on one CPU thread, two hours",
    "--loaded --json docs/results/cpu-loaded.json     # plug-ins beside a process that copies memory",
    "--suite growth --json docs/results/growth.json   # time and memory of mixers over the tokens, half an hour",
    "--suite gpu --json docs/results/gpu.json         # all GPU rows, under 9 minutes",
    "--plugins cbam triplet --shapes 4x128x28x28 --seconds 0.3 --json cbam.json",
    "--suite mixers --mixers biformer --shapes 2x56x56x64",
    "--suite mixers --json new.json --compare old.json --fail-below 0.9",
    "--plugins lam csam --json docs/results/cpu.json --update  # measure these rows of a record anew",
    "--from docs/results/[cg]pu*.json --page docs/results/overview.md       # tables and pictures of earlier runs",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--suite",
        choices=("plugins", "frontends", "mixers", "windows", "networks", "growth", "cpu", "gpu"),
        default="plugins",
        help="plugins (default): against the literal formulas of their papers and the layers of timm and "
        "fightingcv-attention; frontends: against literal formulas; mixers: against timm's modules or literal "
        "formulas; windows: focused linear attention against window attention; networks: against timm's, or with "
        "literal formulas inside; growth: time and memory of mixers over the number of tokens, beside what their cards "
        "state; cpu, gpu: the other suites of that device",
    )
    parser.add_argument("--json", type=Path, help="keep the record of a new run here, tables and pictures beside it")
    parser.add_argument(
        "--update",
        action="store_true",
        help="keep the rows of --json that this run doesn't measure (in growth they are kept anyway, and those of "
        "--mixers are measured anew)",
    )
    parser.add_argument(
        "--from", dest="records", nargs="+", type=Path, default=[], help="report on these records and run nothing"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--plugins", nargs="+", default=[], help="names of plug-ins (default: all)")
    parser.add_argument(
        "--mixers", nargs="+", default=[], help="names of mixers, in their suite or in growth (default: all)"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="BxCxHxW",
        default=[],
        help="shapes of the plug-ins' maps (default: an early and a late stage of a ResNet-50; on the CPU also a small "
        "map), or with --suite mixers of theirs, BxHxWxC (default: the stages of a pyramid)",
    )
    parser.add_argument(
        "--layouts",
        nargs="+",
        choices=("NCHW", "NHWC"),
        default=["NCHW", "NHWC"],
        help="memory layouts (default: both)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="time per contender and row, on average (default: 0.5 s of CPU time, 0.1 s on a GPU)",
    )
    parser.add_argument(
        "--limit", type=float, help="start no row after this many seconds (default: 480 on a GPU, none on the CPU)"
    )
    parser.add_argument(
        "--compile-seconds",
        type=float,
        help="time budget of all compilations (default: 150 on a GPU, 7200 on the CPU)",
    )
    parser.add_argument(
        "--loaded",
        action="store_true",
        help="run beside a process that copies memory all the time, as on a machine that others use",
    )
    parser.add_argument("--page", type=Path, help="update the speed tables between the two markers of this page")
    parser.add_argument("--compare", type=Path, help="an earlier record: print the speed-up of each row")
    parser.add_argument(
        "--fail-below",
        type=float,
        help="with --compare: exit with status 1 if a row is slower than this ratio and the noise",
    )


def run(options: argparse.Namespace) -> None:
    """Times plug-ins, mixers or networks against other implementations, and reports what was measured."""
    from visionattn import benchmark as bench
    from visionattn.utils.files import replacing

    if options.json and options.records:
        raise ValueError("give either --json, the file of a new run, or --from, the files of earlier runs, not both")
    if options.update and not options.json:
        raise ValueError("--update needs --json, the record that is updated")
    if options.loaded and (options.records or options.suite == "growth"):
        raise ValueError("--loaded is for runs of contenders in turns: neither for --from nor for --suite growth")
    base = bench.load(options.compare) if options.compare else None
    if options.records:
        records = {path: bench.load(path) for path in options.records}
    elif options.suite == "growth":
        with TemporaryDirectory() as folder:
            out = options.json or Path(folder) / "record.json"
            seconds = options.seconds or 0.03
            record = bench.run_growth(out, names=options.mixers, seconds=seconds, anew=options.update)
        records = {options.json: record}
    else:
        device = {"gpu": "cuda", "cpu": "cpu"}.get(options.suite, options.device)
        cases = bench.suite_cases(
            options.suite,
            device,
            plugins=options.plugins,
            mixers=options.mixers,
            shapes=[_shape(text) for text in options.shapes],
            layouts=options.layouts,
        )
        seconds = options.seconds or {"cpu": 0.5, "cuda": 0.1}[device]
        limit = options.limit or {"cpu": float("inf"), "cuda": 480.0}[device]
        compilers = options.compile_seconds
        if compilers is None:
            compilers = {"cpu": 7200.0, "cuda": 150.0}[device]
        plan = bench.make_plan(
            options.suite,
            device,
            cases,
            seconds=seconds,
            limit=limit,
            compilers=compilers,
            loaded=options.loaded,
        )
        with TemporaryDirectory() as folder:
            earlier = bench.load(options.json) if options.update else None
            record = bench.run(plan, options.json or Path(folder) / "record.json", earlier)
        records = {options.json: record}
    for path, record in records.items():
        text = bench.write_report(record, path) if path else bench.format_record(record)
        if not options.records:
            print(text)
    if options.page:
        text = bench.update_page(options.page.read_text(encoding="utf-8"), list(records.values()))
        with replacing(options.page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if base is not None:
        lines = [line for record in records.values() for line in bench.compare(record, base)]
        _compare_speed(lines, options.fail_below)
    refused = [row for record in records.values() for row in record["rows"] if "refused" in row]
    if refused:
        sys.exit(f"visionattn: {len(refused)} rows were refused: their contenders disagree or failed")


def _shape(text: str) -> tuple[int, ...]:
    sides = text.split("x")
    if len(sides) != 4 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"--shapes must be like 8x256x56x56, got {text}")
    return tuple(map(int, sides))


def _compare_speed(lines: list[tuple[str, float, tuple[float, float]]], fail_below: float | None) -> None:
    """Prints the speed of the head relative to the base; exits with 1 if a row fell below the limit and its noise."""
    worse = 0
    for name, ratio, (low, high) in lines:
        regressed = fail_below is not None and ratio < min(fail_below, low)
        worse += regressed
        mark = "  REGRESSION" if regressed else "  slower than noise" if ratio < low else ""
        print(f"{ratio:6.2f}x (noise {low:.2f}-{high:.2f})  {name}{mark}")
    print(f"{len(lines)} rows in both records" + (f", {worse} regressed" if fail_below is not None else ""))
    if worse:
        sys.exit(1)

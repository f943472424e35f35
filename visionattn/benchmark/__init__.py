"""Speed compared with other implementations of the same weights, on CPU and GPU.

`cases` say what is compared, `contenders` how baselines are made, `suites` what a run takes; `rows` makes one row with
the stopwatch of `timing`; `record` is what stays; `report` and `plots` are what is said about it.
`growth` is a record of its own: time and memory of mixers over the number of tokens.
"""

from .cases import LAYOUTS, MODES, Case
from .growth import run_growth
from .record import compare, load, save, surroundings
from .report import format_record, update_page, write_report
from .rows import CompileBudget, Unequal, measure
from .runs import run
from .suites import SUITES, make_plan, suite_cases
from .timing import one_thread

__all__ = [
    "LAYOUTS",
    "MODES",
    "SUITES",
    "Case",
    "CompileBudget",
    "Unequal",
    "compare",
    "format_record",
    "load",
    "make_plan",
    "measure",
    "one_thread",
    "run",
    "run_growth",
    "save",
    "suite_cases",
    "surroundings",
    "update_page",
    "write_report",
]

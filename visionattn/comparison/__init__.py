"""Training networks by one recipe with several seeds, and saying honestly which differences are more than noise."""

from .suite_run import run_suite, smoke
from .suites import SUITES, Suite

__all__ = ["SUITES", "Suite", "run_suite", "smoke"]

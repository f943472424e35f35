"""Diagnostics: which mechanism brings which ability, on small generated tasks, with baselines, seeds and intervals."""

from .suite import dry_run, run_diagnostics

__all__ = ["dry_run", "run_diagnostics"]

"""Diagnostics: which mechanism brings which ability, on small generated tasks, with baselines, seeds and intervals."""

from .suite import dry_run, run_diagnostics, train_again

__all__ = ["dry_run", "run_diagnostics", "train_again"]

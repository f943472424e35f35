"""Literal formulas of the papers, for tests and speed comparisons. Slow and short on purpose.

A module's `naive_of` makes the literal module of one of ours, with its weights. `LOOPS = True` says that it goes
position by position, or holds all features of all pairs: such a formula checks numbers, and speed on small maps only.
"""

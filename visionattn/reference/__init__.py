"""Literal formulas of the papers: what tests check against and speed is compared with. Slow, and short on purpose."""

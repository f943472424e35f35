"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from .cross import cross_gate
from .pool import max_first
from .strip import strip_gate, strip_means

__all__ = ["cross_gate", "max_first", "strip_gate", "strip_means"]

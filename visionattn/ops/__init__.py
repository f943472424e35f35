"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from .pool import max_first

__all__ = ["max_first"]

"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from ._eager import written_by_hand
from .pool import max_first
from .subspace import channel_moments, residual_gate, subspace_scores

__all__ = ["channel_moments", "max_first", "residual_gate", "subspace_scores", "written_by_hand"]

"""Functions on tensors that the blocks share; the torch code here defines what they mean."""

from .axis_pool import axis_pools
from .layout import memory_format
from .plane_conv import plane_conv
from .pool import max_first

__all__ = ["axis_pools", "max_first", "memory_format", "plane_conv"]

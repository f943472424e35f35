"""When to leave PyTorch's own operators for formulations written by hand."""

import torch

__all__ = ["written_by_hand"]


def written_by_hand(x: torch.Tensor) -> bool:
    """Whether this tensor takes the hand-written CPU formulations, with their own backward passes.

    Compilers and exporters get PyTorch's plain operators, which they know how to fuse and translate, and half precision
    too, whose operators accumulate in float32.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )

"""Mixed precision on any device; mmengine 0.10.7 refuses it on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

__all__ = ["AutocastOptimWrapper"]


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """An optimiser whose forward passes run in half precision, with loss scaling where float16 needs it.

    Args:
        dtype: `bfloat16` or `float16`. By default bfloat16 where the device has it, which is on every CPU.
        **kwargs: As mmengine's OptimWrapper (`optimizer`, `accumulative_counts`, `clip_grad`).

    Raises:
        ValueError: If `dtype` is neither, or float16 is asked for on a CPU.
    """

    def __init__(self, dtype: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.device_type = torch.device(get_device()).type
        if dtype is None:
            native = self.device_type != "cuda" or torch.cuda.is_bf16_supported()
            dtype = "bfloat16" if native else "float16"
        if dtype not in ("bfloat16", "float16"):
            raise ValueError(f"dtype must be 'bfloat16' or 'float16', got {dtype!r}")
        if dtype == "float16" and self.device_type == "cpu":
            raise ValueError("float16 training needs a GPU; use dtype='bfloat16' on a CPU")
        self.dtype = getattr(torch, dtype)
        # bfloat16 has float32's range: a disabled scaler passes everything through.
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=dtype == "float16")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass, besides mmengine's handling of accumulation."""
        with super().optim_context(model), torch.autocast(self.device_type, self.dtype):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backpropagates the scaled loss."""
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Clips the unscaled gradients and steps, unless they overflowed."""
        if self.clip_grad_kwargs:
            self.scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the scaler's."""
        return {**super().state_dict(), "loss_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, also one saved without mixed precision."""
        state_dict = dict(state_dict)
        scaler = state_dict.pop("loss_scaler", None)
        if scaler:
            self.scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)

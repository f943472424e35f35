"""Handles losses that become NaN or infinite."""

import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from .resume import resume_hint

__all__ = ["FiniteLossHook"]


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends a run whose loss stays non-finite, or skips such steps.

    Weights that are not finite are never saved (`AtomicCheckpointHook`), so the last good checkpoint stays.

    Args:
        patience: End the run after this many steps in a row whose loss or gradients are not finite.
        skip: Leave weights, optimizer state and the statistics of batch normalization as they were before such a step;
            float16's loss scaling skips steps whose scaled gradients overflow by itself, and they do not count.
        detect_anomaly: Let PyTorch name the operation whose gradient becomes NaN; slow.

    Raises:
        ValueError: If `patience` is below 1; later, when the run ends.
    """

    priority = "ABOVE_NORMAL"  # before weights are averaged

    def __init__(self, patience: int = 3, skip: bool = False, detect_anomaly: bool = False) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.patience = patience
        self.skip = skip
        self.detect_anomaly = detect_anomaly
        self.in_a_row = 0
        self.skipped = 0  # in all
        self._dropped = False

    def before_train(self, runner: Any) -> None:
        """Prepares for skipping steps, if asked."""
        if self.detect_anomaly:
            torch.autograd.set_detect_anomaly(True)
        if self.skip:
            runner.optim_wrapper.optimizer.register_step_pre_hook(self._drop_gradients)
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self._buffers = list(model.buffers())
            self._saved = [buffer.clone() for buffer in self._buffers]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Checks the loss of the step."""
        loss = torch.as_tensor((outputs or {}).get("loss", 0.0)).detach().item()
        bad = self._dropped or not math.isfinite(loss)
        self._dropped = False
        if self.skip:
            with torch.no_grad():
                for buffer, saved in zip(self._buffers, self._saved, strict=True):
                    buffer.copy_(saved) if bad else saved.copy_(buffer)
        if not bad:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradients are not finite"
        if self.in_a_row >= self.patience:
            raise ValueError(
                f"{what}, step {self.in_a_row} in a row up to iteration {runner.iter + 1}: lower "
                "optim_wrapper.optimizer.lr or set optim_wrapper.clip_grad; "
                "default_hooks.finite_loss.detect_anomaly=True names the operation, "
                f"default_hooks.finite_loss.skip=True skips such steps; {resume_hint(runner.work_dir)}"
            )
        if self.skip:
            self.skipped += 1
        runner.logger.warning(f"Iteration {runner.iter + 1}: {what}{'; step skipped' if self.skip else ''}")

    def _drop_gradients(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Drops the gradients, so that the step changes nothing."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Every process has the same gradients, and so decides alike.
        if gradients and not torch.nn.utils.get_total_norm(gradients).isfinite():
            optimizer.zero_grad(set_to_none=True)
            self._dropped = True

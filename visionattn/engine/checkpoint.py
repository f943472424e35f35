"""Checkpoints that survive a kill at any moment, and from which a run resumes bit-exactly."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from visionattn.utils.files import remove_leftovers, replacing

from .logs import naming
from .resume import POINTER, resume_hint, run_settings
from .units import MetricInfo, metric_info

__all__ = ["AtomicCheckpointHook"]


@HOOKS.register_module()
class AtomicCheckpointHook(Hook):
    """Saves the run every few epochs (or iterations) after evaluation, and the best weights so far.

    mmengine's CheckpointHook saves before the evaluation, so that a run killed between the two lost its evaluation, and
    deletes old files before the new one is complete. Weights that are not finite are not saved: the run ends.

    Args:
        interval: Save every this many epochs; the last one is always saved.
        by_epoch: Count epochs; otherwise iterations. As the run (`train_cfg`) counts.
        max_keep_ckpts: How many to keep, the newest ones; -1 keeps all.
        save_best: Name of the metric whose best value is kept as `best_<metric>.pth`; none keeps no best.
        rule: Whether a `greater` or `less` value of it is better; by default what is known of the metric.

    Attributes:
        metric: What is known of the metric, once training has begun; none without `save_best` or validation.

    Raises:
        ValueError: If a number or the rule is out of range; before training, if it counts otherwise than the run, if
            there is no such metric, or if it isn't known which values of it are better.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        max_keep_ckpts: int = 3,
        save_best: str | None = None,
        rule: str | None = None,
    ) -> None:
        if interval < 1 or max_keep_ckpts == 0:
            raise ValueError(
                f"interval must be at least 1 and max_keep_ckpts not 0, got interval={interval}, "
                f"max_keep_ckpts={max_keep_ckpts}"
            )
        if rule not in ("greater", "less", None):
            raise ValueError(f"rule must be 'greater' or 'less', got {rule!r}")
        self.interval = interval
        self.by_epoch = by_epoch
        self.max_keep_ckpts = max_keep_ckpts
        self.save_best = save_best
        self.rule = rule
        self.metric: MetricInfo | None = None
        self._training = False

    def before_train(self, runner: Any) -> None:
        """Checks the arguments against the run, and removes what a killed run left unfinished."""
        if self.by_epoch != isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f"default_hooks.checkpoint.by_epoch is {self.by_epoch}, but the run (train_cfg) counts "
                f"{'iterations' if self.by_epoch else 'epochs'}"
            )
        if self.save_best is not None and runner.val_loop is not None:
            self.metric = self._known(runner.val_evaluator.metrics, self.save_best)
        self._training = True
        if is_main_process():
            remove_leftovers(runner.work_dir)

    def after_train(self, runner: Any) -> None:
        """Later evaluations are not part of the run."""
        self._training = False

    def _known(self, metrics: Any, name: str) -> MetricInfo:
        info = metric_info(metrics, name)
        if info is None:
            known = ", ".join(key for metric in metrics if hasattr(metric, "names") for key in metric.names())
            raise ValueError(f"save_best={name!r} (default_hooks.checkpoint) is none of the metrics: {known}")
        info = replace(info, better=self.rule or info.better)
        if info.better is None:
            raise ValueError(
                f"save_best={name!r}: it isn't known which values are better; set default_hooks.checkpoint.rule to "
                "'greater' or 'less'"
            )
        return info

    def after_train_epoch(self, runner: Any) -> None:
        """Saves an epoch without a following evaluation."""
        if self.by_epoch and not _evaluates(runner, runner.epoch + 1):
            self._save_run(runner, runner.epoch + 1, epoch=runner.epoch + 1, iteration=runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Saves an iteration without a following evaluation."""
        if not self.by_epoch and not _evaluates(runner, runner.iter + 1):
            self._save_run(runner, runner.iter + 1, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Saves the best weights, then the run with a record of them."""
        if not self._training:
            return  # an evaluation on its own
        self._save_best(runner, metrics or {})
        self._save_run(runner, runner.epoch if self.by_epoch else runner.iter, runner.epoch, runner.iter)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keeps plain data only, which loads without trusting the file, and refuses non-finite weights."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        trained = {name for name, _ in model.named_parameters()}
        for part in ("state_dict", "ema_state_dict"):
            for name in _not_finite(checkpoint.get(part, {}), trained):
                raise ValueError(
                    f"the weights hold NaN or infinite values ({name}) and are not saved: lower "
                    f"optim_wrapper.optimizer.lr or set optim_wrapper.clip_grad; {resume_hint(runner.work_dir)}"
                )
        info = checkpoint["message_hub"]["runtime_info"]
        checkpoint["message_hub"] = {
            "log_scalars": {},
            "runtime_info": {key: v.item() if isinstance(v, np.generic) else v for key, v in info.items()},
            "resumed_keys": dict.fromkeys(info, True),
        }

    def _save_run(self, runner: Any, step: int, epoch: int, iteration: int) -> None:
        end = runner.max_epochs if self.by_epoch else runner.max_iters
        if step % self.interval and step != end:
            return
        name = f"{'epoch' if self.by_epoch else 'iter'}_{step}.pth"
        kept = [kept for kept in runner.message_hub.runtime_info.get("kept_checkpoints", []) if kept != name] + [name]
        dropped = kept[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []
        runner.message_hub.update_info("kept_checkpoints", kept[len(dropped) :])
        runner.logger.info(f"Saving checkpoint {name}")
        self._write(runner, name, epoch, iteration)
        if is_main_process():
            path = Path(runner.work_dir) / POINTER
            with naming(path), replacing(path) as pointer:
                pointer.write_text(name)
            for old in dropped:
                (Path(runner.work_dir) / old).unlink(missing_ok=True)

    def _save_best(self, runner: Any, metrics: dict[str, float]) -> None:
        if self.save_best is None or self.metric is None:
            return
        if self.save_best not in metrics:
            raise ValueError(
                f"save_best={self.save_best!r} is none of the metrics: {', '.join(metrics) or 'there are none'}"
            )
        score = float(metrics[self.save_best])
        known = runner.message_hub.runtime_info
        best = known.get("best_score") if known.get("best_metric") == self.save_best else None
        if not self.metric.improves(score, best):
            return
        runner.message_hub.update_info_dict({"best_score": score, "best_metric": self.save_best})
        name = f"best_{self.save_best.replace('/', '_')}.pth"
        runner.message_hub.update_info("best_checkpoint", name)
        self._write(runner, name, runner.epoch, runner.iter, resumable=False)
        runner.logger.info(f"Best {self.save_best} so far: {self.metric.format(score)}, saved to {name}")

    def _write(self, runner: Any, name: str, epoch: int, iteration: int, resumable: bool = True) -> None:
        if not is_main_process():
            return
        path = Path(runner.work_dir) / name
        with naming(path), replacing(path) as temporary:
            runner.save_checkpoint(
                str(temporary.parent),
                temporary.name,
                save_optimizer=resumable,
                save_param_scheduler=resumable and runner.param_schedulers is not None,
                meta={"epoch": epoch, "iter": iteration, "settings": run_settings(runner)},
                by_epoch=self.by_epoch,
            )


def _evaluates(runner: Any, step: int) -> bool:
    """Whether the training loop evaluates after this epoch (or iteration)."""
    loop = runner.train_loop
    end = runner.max_epochs if isinstance(loop, EpochBasedTrainLoop) else runner.max_iters
    due = step % loop.val_interval == 0 or step == end
    return runner.val_loop is not None and step >= loop.val_begin and due


def _not_finite(state_dict: dict[str, torch.Tensor], trained: set[str]) -> Iterator[str]:
    """Names of non-finite weights, and of buffers with NaN; buffers may be infinite."""
    for name, value in state_dict.items():
        if value.is_floating_point():
            good = value.isfinite() if name.removeprefix("module.") in trained else ~value.isnan()
            if not good.all():
                yield name

"""Checkpoints that a kill at any moment can't spoil, and from which a run goes on bit for bit."""

import operator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop

from visionattn.utils.files import remove_leftovers, replacing

__all__ = ["AtomicCheckpointHook", "latest_checkpoint"]

_POINTER = "last_checkpoint"
_BETTER = {"greater": operator.gt, "less": operator.lt}


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint from which a run in this folder goes on; none if it has not saved any."""
    work_dir = Path(work_dir)
    pointer = work_dir / _POINTER
    if not pointer.is_file():
        return None
    target = work_dir / pointer.read_text().strip()
    if not target.is_file():
        raise FileNotFoundError(f"{pointer} names {target.name}, which is gone; name a checkpoint to resume from")
    return target


@HOOKS.register_module()
class AtomicCheckpointHook(Hook):
    """Saves the run every few epochs (or iterations), after the evaluation, and the best weights so far.

    mmengine's CheckpointHook saves before the evaluation, so that a run killed between the two lost its evaluation, and
    deletes old files before the new one is complete.

    Args:
        interval: Save every this many epochs; the last one is always saved.
        by_epoch: Count epochs; otherwise iterations.
        max_keep_ckpts: How many to keep, the newest ones; -1 keeps all.
        save_best: Name of the metric whose best value is kept as `best_<metric>.pth`; none keeps no best.
        rule: Whether a `greater` or `less` value of it is better.

    Raises:
        ValueError: If a number or the rule is out of range.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        max_keep_ckpts: int = 3,
        save_best: str | None = None,
        rule: str = "greater",
    ) -> None:
        if interval < 1 or max_keep_ckpts == 0:
            raise ValueError(
                f"interval must be at least 1 and max_keep_ckpts not 0, got interval={interval}, "
                f"max_keep_ckpts={max_keep_ckpts}"
            )
        if rule not in _BETTER:
            raise ValueError(f"rule must be 'greater' or 'less', got {rule!r}")
        self.interval = interval
        self.by_epoch = by_epoch
        self.max_keep_ckpts = max_keep_ckpts
        self.save_best = save_best
        self.rule = rule

    def before_train(self, runner: Any) -> None:
        """Clears away what a killed run left unfinished."""
        if is_main_process():
            remove_leftovers(runner.work_dir)

    def after_train_epoch(self, runner: Any) -> None:
        """Saves an epoch that no evaluation follows."""
        if self.by_epoch and not _evaluates(runner, runner.epoch + 1):
            self._save_run(runner, runner.epoch + 1, epoch=runner.epoch + 1, iteration=runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Saves an iteration that no evaluation follows."""
        if not self.by_epoch and not _evaluates(runner, runner.iter + 1):
            self._save_run(runner, runner.iter + 1, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Saves the best weights, then the run with the knowledge of them."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # an evaluation on its own
        self._save_best(runner, metrics or {})
        self._save_run(runner, runner.epoch if self.by_epoch else runner.iter, runner.epoch, runner.iter)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Leaves only plain data, which loads without trusting the file: no log history, no NumPy numbers."""
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
            with replacing(Path(runner.work_dir) / _POINTER) as pointer:
                pointer.write_text(name)
            for old in dropped:
                (Path(runner.work_dir) / old).unlink(missing_ok=True)

    def _save_best(self, runner: Any, metrics: dict[str, float]) -> None:
        if self.save_best is None:
            return
        if self.save_best not in metrics:
            raise ValueError(
                f"save_best={self.save_best!r} is none of the metrics: {', '.join(metrics) or 'there are none'}"
            )
        score = float(metrics[self.save_best])
        best = runner.message_hub.runtime_info.get("best_score")
        if best is not None and not _BETTER[self.rule](score, best):
            return
        runner.message_hub.update_info("best_score", score)
        name = f"best_{self.save_best.replace('/', '_')}.pth"
        runner.message_hub.update_info("best_checkpoint", name)
        self._write(runner, name, runner.epoch, runner.iter, resumable=False)
        runner.logger.info(f"Best {self.save_best} so far: {score:.4f}, saved to {name}")

    def _write(self, runner: Any, name: str, epoch: int, iteration: int, resumable: bool = True) -> None:
        if not is_main_process():
            return
        with replacing(Path(runner.work_dir) / name) as temporary:
            runner.save_checkpoint(
                str(temporary.parent),
                temporary.name,
                save_optimizer=resumable,
                save_param_scheduler=resumable and runner.param_schedulers is not None,
                meta={"epoch": epoch, "iter": iteration},
                by_epoch=self.by_epoch,
            )


def _evaluates(runner: Any, step: int) -> bool:
    """Whether the training loop evaluates after this epoch (or iteration)."""
    loop = runner.train_loop
    end = runner.max_epochs if isinstance(loop, EpochBasedTrainLoop) else runner.max_iters
    due = step % loop.val_interval == 0 or step == end
    return runner.val_loop is not None and step >= loop.val_begin and due

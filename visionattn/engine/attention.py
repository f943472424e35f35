"""Where the network looks while it trains: a grid of maps at every validation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from visionattn import explain

__all__ = ["AttentionLogHook"]

_LEAST = 112  # pixels of a panel's shorter side; smaller pictures are enlarged


@HOOKS.register_module()
class AttentionLogHook(Hook):
    """Hands the visualizer a picture at validations: TensorBoard and a file in `vis_data/vis_image` of the run's log.

        default_hooks = dict(attention=dict(type="AttentionLogHook"))

    A row for each of the first pictures of the validation set, with some attentions, from the first to the last, as
    `explain.raw` shows them; of CNNs the spatial gates of their plug-ins. A network without either is said so once, in
    the log. Training goes on as without the hook, to the last bit: no random number is drawn, and only the first
    process draws.

    Args:
        interval: Draw at every so many validations.
        count: How many pictures.
        columns: How many attentions or gates, evenly spaced over the network, the last one among them.

    Raises:
        ValueError: If an argument is below 1.
    """

    priority = "LOW"

    def __init__(self, interval: int = 1, count: int = 4, columns: int = 4) -> None:
        for name, value in (("interval", interval), ("count", count), ("columns", columns)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.interval, self.count, self.columns = interval, count, columns
        self.validations = 0
        self.silent = False

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draws the first pictures of the validation set, with the weights that are validated."""
        if batch_idx or self.silent:
            return
        self.validations += 1
        if (self.validations - 1) % self.interval or not is_main_process():
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        x = model.data_preprocessor(data_batch, False)["inputs"][: self.count]
        try:
            with torch.no_grad(), _uncompiled(model.backbone):
                maps = self._maps(model.backbone, x)
        except ValueError as error:
            self.silent = True
            runner.logger.warning(f"no maps of attention are shown: {error}")
            return
        by_epoch = isinstance(runner._train_loop, EpochBasedTrainLoop)
        runner.visualizer.add_image("attention", _drawn(x, maps), runner.epoch if by_epoch else runner.iter)

    def _maps(self, network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(B, h, w)` each, by their labels."""
        try:
            with explain.capture(network, keep=("probs",)) as record:
                network(x)
            layers = _spaced(explain.spatial_layers(record), self.columns)
            return {f"{layer.index} {layer.path}": explain.raw(record, layer.index) for layer in layers}
        except ValueError as without_attention:
            try:
                gates = explain.spatial_gates(network, x)
            except ValueError as without_gates:
                raise ValueError(f"{without_attention}; {without_gates}") from None
        return {name: gates[name] for name in _spaced(list(gates), self.columns)}


def _spaced(items: list[Any], count: int) -> list[Any]:
    """Some of them, evenly spaced, the last one included."""
    return items if len(items) <= count else [items[-(-(i + 1) * len(items) // count) - 1] for i in range(count)]


def _drawn(x: torch.Tensor, maps: dict[str, torch.Tensor]) -> np.ndarray:
    panels, labels = [], []
    for number, image in enumerate(x):
        seen = explain.as_seen(image)
        times = -(-_LEAST // min(seen.shape[:2]))
        seen = np.repeat(np.repeat(seen, times, 0), times, 1)
        panels += [seen, *(explain.overlay(seen, values[number].float().cpu()) for values in maps.values())]
        labels += ["input", *maps]
    longest = panels[0].shape[1] // 6  # letters that fit above a panel
    return explain.grid(panels, [label[-longest:] for label in labels], columns=len(maps) + 1)


@contextmanager
def _uncompiled(network: nn.Module) -> Iterator[None]:
    """The network as it was before `network.compile()`: compiled, nobody sees its attention."""
    compiled: Any = network._compiled_call_impl
    network._compiled_call_impl = None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled

"""Image classification with any timm network."""

from typing import Any

import torch
from mmengine.registry import MODELS
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch import nn

from visionattn.models.loading import LoadReport, load_fitting

from ._base import Task, compile_network, create_network, with_mixer_losses

__all__ = ["Classifier"]

_LOSSES = {"CrossEntropyLoss": nn.CrossEntropyLoss, "BinaryCrossEntropy": BinaryCrossEntropy}


@MODELS.register_module()
class Classifier(Task):
    """A timm network with a loss over its logits.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them; `num_classes` sizes the head.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the network, pretrained weights kept.
        loss: `type` is `CrossEntropyLoss` or timm's `BinaryCrossEntropy`, the rest its arguments (`label_smoothing`,
            `smoothing`).
        mixup: Arguments of `timm.data.Mixup` (`mixup_alpha`, `cutmix_alpha`, `prob`, `switch_prob`, `mode`), which
            mixes the pictures of a training batch and their labels; batches must be even.
        channels_last: Keep weights and maps with their channels innermost, which convolutions are often faster with.
        compile: Compile the network with torch.compile: True, or its arguments.
        data_preprocessor: As in mmengine, usually `dict(type='ImgDataPreprocessor', mean=[...], std=[...])`.

    Raises:
        ValueError: If the network or the loss is unknown.
    """

    kind = "classification"

    def __init__(
        self,
        backbone: dict[str, Any],
        attach: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        mixup: dict[str, Any] | None = None,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__(channels_last, data_preprocessor)
        self.backbone = create_network(backbone, attach)
        loss = dict(loss or {"type": "CrossEntropyLoss"})
        kind = loss.pop("type", None)
        if kind not in _LOSSES:
            raise ValueError(f"loss type must be one of {', '.join(_LOSSES)}, got {kind!r}")
        self.loss = _LOSSES[kind](**loss)
        # Smoothing belongs to the loss: applied after mixing it gives the same targets.
        mixup = {**mixup, "num_classes": self.num_classes, "label_smoothing": 0.0} if mixup else None
        self.mixup = Mixup(**mixup) if mixup else None
        self.backbone.to(memory_format=self.memory_format)
        compile_network(self.backbone, compile)

    @property
    def num_classes(self) -> int:
        """Width of the head."""
        return self.backbone.num_classes

    def load_weights(self, state_dict: dict[str, torch.Tensor], other_classes: bool = False) -> LoadReport:
        """As `Task.load_weights`; also takes the weights of the network alone, without `backbone.` in their keys."""
        whole = any(key.startswith("backbone.") for key in state_dict)
        return load_fitting(self if whole else self.backbone, state_dict, other_classes)

    def forward(
        self, inputs: torch.Tensor, data_samples: dict[str, torch.Tensor] | None = None, mode: str = "tensor"
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Runs the network.

        Args:
            inputs: `(B, C, H, W)`, normalised.
            data_samples: `label` and `index`, each `(B,)`; needed for `loss` and `predict`.
            mode: `tensor` gives the logits, `loss` a dict of losses, `predict` one dict a picture with `preds`
                (probability of each class) and `target`.
        """
        inputs = inputs.to(memory_format=self.memory_format)
        if mode == "loss":
            return with_mixer_losses(self._loss, inputs, data_samples["label"])
        logits = self.backbone(inputs)
        if mode == "tensor":
            return logits
        if mode == "predict":
            preds = logits.float().softmax(-1)
            return [{"preds": p, "target": t} for p, t in zip(preds, data_samples["label"], strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")

    def _loss(self, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.mixup is not None:
            if len(inputs) % 2:
                raise ValueError(
                    f"mixup needs batches of even size, got {len(inputs)}: set train_dataloader.drop_last=True"
                )
            inputs, target = self.mixup(inputs, target)
        return {"loss": self.loss(self.backbone(inputs), target)}

"""Image classification with any timm network."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import Mixup
from torch import nn

from visionattn.models.loading import LoadReport, load_fitting
from visionattn.ops.losses import known_targets
from visionattn.plugins._condition import given_condition
from visionattn.utils.building import build

from ._base import Task, check_kinds, compile_network, create_network
from .losses import build_loss
from .registry import HEADS

__all__ = ["Classifier"]


class Classifier(Task):
    """A timm network with a loss over its logits.

    The pictures of a batch have one size: padding would change what the network sees.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them; `num_classes` sizes the head.
            `pretrained='packaged'` takes weights that come with the package and none if there are none.
        head: A head in place of the network's own, on its last feature map: `type` is a name in
            `visionattn.tasks.HEADS`, the rest its arguments.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the network, pretrained weights kept.
        replace_attention: Arguments of `visionattn.replace_attention`: a mixer in the place of attention in a
            vision transformer.
        loss: `type` is a name in `visionattn.tasks.LOSSES`, as `CrossEntropyLoss` (`label_smoothing`, `class_weights`)
            or timm's `BinaryCrossEntropy` (`smoothing`), the rest its arguments.
        mixup: Arguments of `timm.data.Mixup` (`mixup_alpha`, `cutmix_alpha`, `prob`, `switch_prob`, `mode`), which
            mixes the pictures of a training batch and their labels; batches must be even.
        channels_last: As for `Task`.
        compile: Compile the network with torch.compile: True, or its arguments.
        start_from: As for `Task`.
        loss_collectors: As for `Task`.
        data_preprocessor: As for `Task`.
        frontend: As for `Task`.

    Raises:
        ValueError: If the network, the loss or an argument is unknown or wrong.
    """

    kind = "classification"

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any] | None = None,
        attach: dict[str, Any] | None = None,
        replace_attention: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        mixup: dict[str, Any] | None = None,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        start_from: dict[str, Any] | None = None,
        loss_collectors: Sequence[dict[str, Any]] = ({"type": "ReportedLosses"},),
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        frontend: dict[str, Any] | None = None,
    ) -> None:
        check_kinds(
            dict,
            "a dict",
            backbone=backbone,
            head=head,
            attach=attach,
            replace_attention=replace_attention,
            loss=loss,
            mixup=mixup,
        )
        in_chans = backbone.get("in_chans", 3)
        super().__init__(in_chans, channels_last, start_from, loss_collectors, data_preprocessor, frontend)
        self.data_preprocessor.register_forward_pre_hook(_one_size)
        self.head: nn.Module | None = None
        self.backbone: Any
        self.num_classes: int
        if head is None:
            self.backbone = create_network(backbone, attach, replace_attention)
            self.num_classes = self.backbone.num_classes
        else:
            if "num_classes" not in backbone:
                raise ValueError("model.head needs model.backbone.num_classes, the number of classes")
            self.num_classes = backbone["num_classes"]
            self.backbone = create_network({**backbone, "num_classes": 0}, attach, replace_attention)
            channels = self.backbone.num_features
            self.head = build(HEADS, head, "head", in_channels=channels, num_classes=self.num_classes)
        if self.num_classes < 1:
            raise ValueError(f"model.backbone.num_classes must be at least 1, got {self.num_classes}")
        self.loss = build_loss(loss or {"type": "CrossEntropyLoss"}, self.num_classes, ignore_index=-100)
        # Smoothing belongs to the loss: applied after mixing it gives the same targets.
        mixup = {**mixup, "num_classes": self.num_classes, "label_smoothing": 0.0} if mixup else None
        self.mixup = build({"Mixup": Mixup}, {"type": "Mixup", **mixup}, "mixup") if mixup else None
        self.to(memory_format=self.memory_format)
        compile_network(self.backbone, compile)

    def load_weights(self, state_dict: dict[str, torch.Tensor], other_classes: bool = False) -> LoadReport:
        """As `Task.load_weights`; also takes the weights of the network alone, without `backbone.` in their keys."""
        return load_fitting(self, self.with_own_names(state_dict), other_classes)

    def with_own_names(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of the network alone, under the task's names."""
        if any(key.startswith("backbone.") for key in state_dict):
            return state_dict
        return {f"backbone.{key}": value for key, value in state_dict.items()}

    def forward(
        self, inputs: torch.Tensor, data_samples: dict[str, torch.Tensor] | None = None, mode: str = "tensor"
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Runs the network.

        Args:
            inputs: `(B, C, H, W)`, normalised.
            data_samples: `label` and `index`, each `(B,)`; needed for `loss` and `predict`. A network that takes one
                gets the `condition` of each picture from them, `(B, D)` or `(B, S, h, w)`; other values are known to
                its layers while `loss` is computed (`visionattn.ops.losses.find_target`).
            mode: `tensor` gives the logits, `loss` a dict of losses, `predict` one dict a picture with `preds`
                (probability of each class) and `target`.

        Raises:
            ValueError: If the mode is unknown, or the inputs are no batch of normalised pictures.
        """
        inputs = self.checked(inputs)
        condition = (data_samples or {}).get("condition")
        if mode == "loss":
            assert data_samples is not None, f"mode {mode!r} needs data_samples"
            if self.mixup is not None and condition is not None:
                raise ValueError("mixup mixes pictures, and each has a condition of its own: leave model.mixup out")
            with given_condition(condition), known_targets(data_samples):
                return self.with_collected(lambda: self._loss(inputs, data_samples["label"]))
        with given_condition(condition):
            logits = self._logits(inputs)
        if mode == "tensor":
            return logits
        if mode == "predict":
            assert data_samples is not None, f"mode {mode!r} needs data_samples"
            preds = logits.float().softmax(-1)
            return [{"preds": p, "target": t} for p, t in zip(preds, data_samples["label"], strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = self.enhanced(inputs)
        if self.head is None:
            return self.backbone(inputs)
        (last,) = self.backbone.forward_intermediates(inputs, indices=1, norm=True, intermediates_only=True)
        return self.head(last)

    def _loss(self, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.mixup is not None:
            if len(inputs) % 2:
                raise ValueError(
                    f"mixup needs batches of even size, got {len(inputs)}: set train_dataloader.drop_last=True"
                )
            inputs, target = self.mixup(inputs, target)
        return {"loss": self.loss(self._logits(inputs), target)}


def _one_size(preprocessor: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Requires one size: the preprocessor would pad smaller images, and scores would depend on the neighbours."""
    pictures = inputs[0].get("inputs") if inputs and isinstance(inputs[0], dict) else None
    if isinstance(pictures, (list, tuple)):
        sizes = sorted({tuple(picture.shape[-2:]) for picture in pictures})
        if len(sizes) > 1:
            listed = ", ".join(f"{width}x{height}" for height, width in sizes[:4])
            raise ValueError(
                f"pictures to classify have different sizes in one batch, {listed}: end the pipeline with a Resize or "
                "a crop, or use batches of one"
            )

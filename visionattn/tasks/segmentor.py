"""Semantic segmentation: decoders of segmentation-models-pytorch, or one's own, over any timm network.

UPerNet (arXiv 1807.10221), FPN (arXiv 1901.02446), Unet (arXiv 1505.04597), DeepLabV3Plus (arXiv 1802.02611) and
Segformer (arXiv 2105.15203).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from visionattn.plugins._condition import given_condition
from visionattn.utils.building import build

from . import _smp  # noqa: F401  (registered by importing)
from ._base import Task, check_kinds
from ._conditions import batch_condition
from ._features import FeatureMaps, find_maps, pad_to_multiple
from ._windows import SlidingWindows, cut
from .losses import build_losses
from .registry import DECODERS, HEADS

__all__ = ["Segmentor"]


class Segmentor(Task):
    """A decoder over the feature maps of a timm network.

    Pictures come normalised and padded from the data preprocessor; they are padded further to what the decoder needs,
    and its output is cut to the picture again, so any size will do. A picture is predicted the same alone and in a
    batch.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them. Decoders take the last four maps, as a rule
            those with strides 4 to 32, Unet takes all; `strides=(4, 8)` chooses others of any network, `out_indices`
            those of one. DeepLabV3Plus is meant for
            `output_stride=16`, which is left out where a network does not know it. `pretrained='packaged'` takes
            weights that come with the package and none if there are none.
        decoder: `type` is a name in `visionattn.tasks.DECODERS`: `UPerNet`, `FPN`, `Unet`, `DeepLabV3Plus`,
            `Segformer`. The rest are its arguments: `decoder_*` of the class of that name in
            segmentation-models-pytorch.
        num_classes: Classes of pixels, the background among them if it is one.
        losses: Each with `type`, a name in `visionattn.tasks.LOSSES`: `CrossEntropyLoss` (`class_weights`,
            `label_smoothing`), `DiceLoss` or `LovaszLoss`; and `loss_weight`, 1 by default. Plain cross-entropy without
            it.
        ignore_index: Value of mask pixels that are not learnt.
        loss_stride: The losses look at every n-th row and column, the first ones drawn anew for each batch: neighbours
            tell nearly the same, and the losses can take a quarter of a small network's time.
        auxiliary: A second head with the same losses on the last map but one, for training only: `type`, a name in
            `visionattn.tasks.HEADS`, `FCNHead` by default, and `loss_weight`, 0.4 by default.
        inference: `crop` and `stride` of a sliding window, (height, width) or one number for both; `flip`: average with
            the mirrored picture. By default the whole picture at once.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the backbone, pretrained weights kept.
        replace_attention: Arguments of `visionattn.replace_attention`: a mixer in the place of attention in a
            vision transformer.
        frozen_stages: How many of the backbone's stages (with all before them) do not learn.
        norm_eval: Whether the backbone's batch normalisation keeps its statistics.
        channels_last: As for `Task`.
        compile: Compile the backbone with torch.compile: True, or its arguments.
        start_from: As for `Task`.
        loss_collectors: As for `Task`.
        data_preprocessor: As for `Task`.
        frontend: As for `Task`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    kind = "segmentation"

    def __init__(
        self,
        backbone: dict[str, Any],
        decoder: dict[str, Any],
        num_classes: int,
        losses: Sequence[dict[str, Any]] = ({"type": "CrossEntropyLoss"},),
        ignore_index: int = 255,
        loss_stride: int = 1,
        auxiliary: dict[str, Any] | None = None,
        inference: dict[str, Any] | None = None,
        attach: dict[str, Any] | None = None,
        replace_attention: dict[str, Any] | None = None,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        start_from: dict[str, Any] | None = None,
        loss_collectors: Sequence[dict[str, Any]] = ({"type": "ReportedLosses"},),
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        frontend: dict[str, Any] | None = None,
    ) -> None:
        dicts = {"backbone": backbone, "decoder": decoder, "auxiliary": auxiliary, "inference": inference}
        check_kinds(dict, "a dict", **dicts, attach=attach, replace_attention=replace_attention)
        check_kinds(int, "a whole number", num_classes=num_classes, frozen_stages=frozen_stages)
        check_kinds(int, "a whole number", loss_stride=loss_stride, ignore_index=ignore_index)
        check_kinds((list, tuple), "a list of dicts", losses=losses)
        in_chans = backbone.get("in_chans", 3)
        super().__init__(in_chans, channels_last, start_from, loss_collectors, data_preprocessor, frontend)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 (the background counts), got {num_classes}")
        if loss_stride < 1:
            raise ValueError(f"loss_stride must be at least 1, got {loss_stride}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.loss_stride = loss_stride
        maps = partial(
            FeatureMaps, backbone, attach, replace_attention, compile, frozen_stages=frozen_stages, norm_eval=norm_eval
        )
        self.network = build(
            DECODERS, decoder, "decoder", build_maps=lambda levels=None: maps(levels=levels), num_classes=num_classes
        )
        self.divisor = self.backbone.divisor
        self.losses, self.loss_weights = build_losses(losses, num_classes, ignore_index)
        self.auxiliary: nn.Module | None = None
        self.auxiliary_weight = 0.0
        if auxiliary is not None:
            head = {"type": "FCNHead", **auxiliary}
            self.auxiliary_weight = head.pop("loss_weight", 0.4)
            channels = self.backbone.channels
            if len(channels) < 2:
                raise ValueError("auxiliary needs two maps: set it to None, or choose more (model.backbone.strides)")
            self.auxiliary = build(HEADS, head, "auxiliary head", in_channels=channels[-2], num_classes=num_classes)
        if unknown := (inference or {}).keys() - {"crop", "stride", "flip"}:
            raise ValueError(f"inference takes crop, stride and flip, got {', '.join(sorted(unknown))}")
        self.predictor = SlidingWindows(**(inference or {}))
        self.to(memory_format=self.memory_format)

    @property
    def backbone(self) -> FeatureMaps:
        """The part that comes from timm."""
        return find_maps(self.network)

    def forward(
        self, inputs: torch.Tensor, data_samples: Sequence[dict[str, Any]] | None = None, mode: str = "tensor"
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Runs the network.

        Args:
            inputs: `(B, C, H, W)`, normalised, padded below and to the right.
            data_samples: One dict a picture. `size` `(h, w)` without the padding; for `loss` also `mask` `(h, w)`; for
                `predict` also `original_mask`, whose size is the original picture's, or that `original_size` alone;
                and `condition` where the backbone takes one, `(D,)` or `(S, h, w)`.
            mode: `tensor` gives the logits `(B, num_classes, H, W)`, `loss` a dict of losses, `predict` one dict a
                picture with `preds`, class numbers of the original picture's size, and `target`.

        Raises:
            ValueError: If the mode is unknown, or the inputs are no batch of normalised pictures.
        """
        inputs = self.checked(inputs)
        condition = batch_condition(data_samples, inputs)
        if mode == "tensor":
            return self._scores(inputs, condition)
        if mode == "loss":
            assert data_samples is not None, f"mode {mode!r} needs data_samples"
            with given_condition(self._padded(condition, inputs)):
                return self.with_collected(lambda: self._loss(inputs, data_samples))
        if mode == "predict":
            assert data_samples is not None, f"mode {mode!r} needs data_samples"
            sizes = [tuple(map(int, sample["size"])) for sample in data_samples]
            if len(set(sizes)) == 1:
                scores = list(self._predict(inputs, condition, sizes[0]))
            else:
                parts = [None] * len(inputs) if condition is None else condition.split(1)
                alone = zip(inputs.split(1), parts, sizes, strict=True)
                scores = [self._predict(x, part, size)[0] for x, part, size in alone]
            return [self._finish(*pair) for pair in zip(scores, data_samples, strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")

    def _predict(self, x: torch.Tensor, condition: torch.Tensor | None, size: Sequence[int]) -> torch.Tensor:
        """Scores of pictures of one size, of which windows are taken, and of conditions that are maps of that size."""
        if condition is None or condition.shape[2:] != x.shape[2:]:
            return self.predictor(lambda part: self._scores(part, condition), cut(x, size))
        joint, channels = torch.cat((x, condition.to(x.dtype)), dim=1), x.shape[1]
        return self.predictor(lambda part: self._scores(part[:, :channels], part[:, channels:]), cut(joint, size))

    def _scores(self, x: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        with given_condition(self._padded(condition, x)):
            return self._logits(self.checked(x))[0]

    def _padded(self, condition: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
        """A condition that is a map of the picture's size, padded as the picture will be."""
        if condition is None or condition.shape[2:] != x.shape[2:]:
            return condition
        return pad_to_multiple(condition, self.divisor)

    def _logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Logits of the decoder and, in training, of the auxiliary head, in the input's size."""
        padded = pad_to_multiple(self.enhanced(x), self.divisor)
        logits, maps = self.network(padded)
        outputs = [logits]
        if self.auxiliary is not None and self.training:
            outputs.append(self.auxiliary(maps[-2]))
        resized = (interpolate(y.float(), padded.shape[-2:], mode="bilinear") for y in outputs)
        return [cut(y, x.shape[-2:]) for y in resized]

    def _loss(self, inputs: torch.Tensor, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        target = inputs.new_full((len(inputs), *inputs.shape[-2:]), self.ignore_index, dtype=torch.int64)
        for row, sample in zip(target, samples, strict=True):
            cut(row, sample["mask"].shape)[:] = sample["mask"]
        grid = self._grid()
        target = target[grid]
        known = bool((target != self.ignore_index).any())
        losses = {}
        weights = (1.0, self.auxiliary_weight)
        for prefix, weight, logits in zip(("", "aux_"), weights, self._logits(inputs), strict=False):
            logits = logits[grid]
            for name, loss in self.losses.items():
                # Where nothing is known the losses are not a number, or no number.
                value = loss(logits, target) if known else logits.sum() * 0
                losses[f"{prefix}loss_{name}"] = weight * self.loss_weights[name] * value
        return losses

    def _grid(self) -> tuple[Any, ...]:
        """The pixels that the losses use."""
        if self.loss_stride == 1:
            return (...,)
        return ..., *(slice(int(start), None, self.loss_stride) for start in torch.randint(self.loss_stride, (2,)))

    def _finish(self, scores: torch.Tensor, sample: dict[str, Any]) -> dict[str, Any]:
        """Class numbers of the original picture's pixels."""
        target = sample.get("original_mask")
        size = sample.get("original_size", sample["size"]) if target is None else target.shape
        height, width = map(int, size)
        labels = _most_probable(scores, (height, width))
        return {"preds": labels.to(torch.uint8) if self.num_classes <= 256 else labels, "target": target}


def _most_probable(scores: torch.Tensor, size: tuple[int, int], at_once: int = 16) -> torch.Tensor:
    """Number of the class with the highest score at each pixel of an enlarged picture.

    Only some classes are enlarged at a time: 150 of them take 7 GB for a photograph of 12 megapixels.

    Args:
        scores: `(classes, h, w)`.
        size: Height and width to enlarge to.
        at_once: How many classes to enlarge at a time.
    """
    best, labels = scores.new_full(size, -torch.inf), torch.zeros(size, dtype=torch.int64, device=scores.device)
    for start in range(0, len(scores), at_once):
        values, numbers = interpolate(scores[None, start : start + at_once], size, mode="bilinear")[0].max(0)
        labels = torch.where(values > best, numbers + start, labels)
        best = torch.maximum(values, best)
    return labels

"""Semantic segmentation: decoders of segmentation-models-pytorch over any timm network.

UPerNet (arXiv 1807.10221), FPN (arXiv 1901.02446), Unet (arXiv 1505.04597), DeepLabV3Plus (arXiv 1802.02611) and
Segformer (arXiv 2105.15203).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.segmentation.fcn import FCNHead

from ._base import Task, with_mixer_losses
from ._features import FeatureMaps, pad_to_multiple
from ._smp import build_decoder

__all__ = ["Segmentor"]


def _cross_entropy(class_weights: Sequence[float] | None = None, **kwargs: Any) -> nn.Module:
    return nn.CrossEntropyLoss(weight=None if class_weights is None else torch.tensor(class_weights), **kwargs)


# Type -> name in the log, and what builds it.
_LOSSES = {
    "CrossEntropyLoss": ("ce", _cross_entropy),
    "DiceLoss": ("dice", partial(smp.losses.DiceLoss, "multiclass")),
    "LovaszLoss": ("lovasz", partial(smp.losses.LovaszLoss, "multiclass")),
}


@MODELS.register_module()
class Segmentor(Task):
    """A decoder of segmentation-models-pytorch over the feature maps of a timm network.

    Pictures come normalised and padded from the data preprocessor; they are padded further to what the decoder needs,
    and its output is cut to the picture again, so any size will do. A picture is predicted the same alone and in a
    batch.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them. Decoders take the last four maps, as a rule
            those with strides 4 to 32, Unet takes all; `out_indices` chooses others. DeepLabV3Plus is meant for
            `output_stride=16`, where the network can do it.
        decoder: `type` is `UPerNet`, `FPN`, `Unet`, `DeepLabV3Plus` or `Segformer`, the rest `decoder_*` arguments of
            the class of that name in segmentation-models-pytorch.
        num_classes: Classes of pixels, the background among them if it is one.
        losses: Each with `type` `CrossEntropyLoss` (`class_weights`, `label_smoothing`), `DiceLoss` or `LovaszLoss`
            (arguments of segmentation-models-pytorch), and `loss_weight`; plain cross-entropy without it.
        ignore_index: Value of mask pixels that are not learnt.
        loss_stride: The losses look at every so-manieth row and column, the first ones drawn anew for each batch:
            neighbours tell nearly the same, and the losses can take a quarter of a small network's time.
        auxiliary: A second, convolutional head (FCN) with the same losses on the last map but one, for training only:
            `loss_weight`, 0.4 by default.
        inference: `crop` and `stride`, heights and widths of a sliding window; `flip`: average with the mirrored
            picture. By default the whole picture at once.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the backbone, pretrained weights kept.
        frozen_stages: How many of the backbone's stages (with all before them) do not learn.
        norm_eval: Whether the backbone's batch normalisation keeps its statistics.
        channels_last: Keep weights and maps with their channels innermost, which convolutions are often faster with.
        compile: Compile the backbone with torch.compile: True, or its arguments.
        data_preprocessor: As in mmengine, usually `dict(type='ImgDataPreprocessor', mean=[...], std=[...])`.

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
        frozen_stages: int = 0,
        norm_eval: bool = False,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__(channels_last, data_preprocessor)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 (the background counts), got {num_classes}")
        if loss_stride < 1:
            raise ValueError(f"loss_stride must be at least 1, got {loss_stride}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.loss_stride = loss_stride
        build = partial(FeatureMaps, backbone, attach, compile, frozen_stages=frozen_stages, norm_eval=norm_eval)
        self.network = build_decoder(dict(decoder), build, num_classes)
        self.divisor = max(self.backbone.strides)
        self.losses, self.loss_weights = _build_losses(losses, ignore_index)
        auxiliary = None if auxiliary is None else {"loss_weight": 0.4, **auxiliary}
        if auxiliary is not None and auxiliary.keys() != {"loss_weight"}:
            raise ValueError(f"auxiliary has only a loss_weight, got {auxiliary}")
        self.auxiliary_weight = auxiliary["loss_weight"] if auxiliary else 0.0
        self.auxiliary = FCNHead(self.backbone.channels[-2], num_classes) if auxiliary else None
        if unknown := (inference or {}).keys() - {"crop", "stride", "flip"}:
            raise ValueError(f"inference takes crop, stride and flip, got {', '.join(unknown)}")
        self.predictor = _Predictor(**(inference or {}))
        self.to(memory_format=self.memory_format)

    @property
    def backbone(self) -> FeatureMaps:
        """The part that comes from timm."""
        return self.network.encoder.maps

    def forward(
        self, inputs: torch.Tensor, data_samples: Sequence[dict[str, Any]] | None = None, mode: str = "tensor"
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Runs the network.

        Args:
            inputs: `(B, C, H, W)`, normalised, padded below and to the right.
            data_samples: One dict a picture. `size` `(h, w)` without the padding; for `loss` also `mask` `(h, w)`; for
                `predict` also `original_mask`, whose size is the original picture's, or that `original_size` alone.
            mode: `tensor` gives the logits `(B, num_classes, H, W)`, `loss` a dict of losses, `predict` one dict a
                picture with `preds`, class numbers of the original picture's size, and `target`.

        Raises:
            ValueError: If the mode is unknown.
        """
        if mode == "tensor":
            return self._logits(inputs)[0]
        if mode == "loss":
            return with_mixer_losses(self._loss, inputs, data_samples)
        if mode == "predict":
            sizes = [tuple(map(int, sample["size"])) for sample in data_samples]
            if len(set(sizes)) == 1:
                scores = list(self.predictor(self.forward, _cut(inputs, sizes[0])))
            else:
                alone = zip(inputs.split(1), sizes, strict=True)
                scores = [self.predictor(self.forward, _cut(x, size))[0] for x, size in alone]
            return [self._finish(*pair) for pair in zip(scores, data_samples, strict=True)]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")

    def _logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Logits of the decoder and, in training, of the auxiliary head, in the input's size."""
        padded = pad_to_multiple(x.to(memory_format=self.memory_format), self.divisor)
        maps = self.network.encoder(padded)
        outputs = [self.network.segmentation_head(self.network.decoder(list(maps)))]
        if self.auxiliary is not None and self.training:
            outputs.append(self.auxiliary(maps[-2]))
        resized = (interpolate(y.float(), padded.shape[-2:], mode="bilinear") for y in outputs)
        return [_cut(y, x.shape[-2:]) for y in resized]

    def _loss(self, inputs: torch.Tensor, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        target = inputs.new_full((len(inputs), *inputs.shape[-2:]), self.ignore_index, dtype=torch.int64)
        for row, sample in zip(target, samples, strict=True):
            _cut(row, sample["mask"].shape)[:] = sample["mask"]
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
        """The pixels that the losses look at."""
        if self.loss_stride == 1:
            return (...,)
        return ..., *(slice(int(start), None, self.loss_stride) for start in torch.randint(self.loss_stride, (2,)))

    def _finish(self, scores: torch.Tensor, sample: dict[str, Any]) -> dict[str, Any]:
        """Class numbers of the original picture's pixels."""
        target = sample.get("original_mask")
        size = sample.get("original_size", sample["size"]) if target is None else target.shape
        labels = interpolate(scores[None], tuple(map(int, size)), mode="bilinear")[0].argmax(0)
        return {"preds": labels.to(torch.uint8) if self.num_classes <= 256 else labels, "target": target}


class _Predictor:
    """Scores of pictures, `(B, 3, H, W) -> (B, num_classes, H, W)`: at once or by a sliding window, mirrored too.

    Args:
        crop: Height and width of the window; none takes the whole picture.
        stride: How far it moves down and to the right; two thirds of the window without it.
        flip: Whether to average the probabilities with those of the mirrored picture.
    """

    def __init__(
        self,
        crop: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        flip: bool = False,
    ) -> None:
        if crop is None and stride is not None:
            raise ValueError("inference.stride needs inference.crop")
        if crop is not None:
            stride = stride or tuple(max(2 * side // 3, 1) for side in crop)
            if len(crop) != 2 or len(stride) != 2 or not all(0 < s <= c for s, c in zip(stride, crop, strict=True)):
                raise ValueError(
                    "inference.crop and stride must be (height, width) with 0 < stride <= crop, got "
                    f"crop={tuple(crop)}, stride={tuple(stride)}"
                )
        self.crop, self.stride, self.flip = crop, stride, flip

    def __call__(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        scores = self._slide(network, x)
        if self.flip:
            mirrored = self._slide(network, x.flip(-1)).flip(-1)
            scores = (scores.softmax(1) + mirrored.softmax(1)) / 2
        return scores

    def _slide(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        if self.crop is None:
            return network(x)
        total, count = 0, x.new_zeros(x.shape[-2:])
        rows, columns = (list(_windows(*sides)) for sides in zip(x.shape[-2:], self.crop, self.stride, strict=True))
        for window in ((..., row, column) for row in rows for column in columns):
            logits = network(x[window])
            if isinstance(total, int):
                total = logits.new_zeros((*logits.shape[:2], *x.shape[-2:]))
            total[window] += logits
            count[window] += 1
        return total / count


def _windows(length: int, window: int, stride: int) -> Iterator[slice]:
    """Windows that cover a length, the last one flush with its end."""
    for start in range(0, max(length - window, 0) + stride, stride):
        stop = min(start + window, length)
        yield slice(max(stop - window, 0), stop)
        if stop == length:
            return


def _build_losses(configs: Sequence[dict[str, Any]], ignore_index: int) -> tuple[nn.ModuleDict, dict[str, float]]:
    losses, weights = nn.ModuleDict(), {}
    for config in map(dict, configs):
        kind = config.pop("type", None)
        if kind not in _LOSSES:
            raise ValueError(f"a loss's type must be one of {', '.join(_LOSSES)}, got {kind!r}")
        name, build = _LOSSES[kind]
        weight = config.pop("loss_weight", 1.0)
        try:
            losses[name] = build(**config, ignore_index=ignore_index)
        except TypeError as error:
            raise ValueError(f"cannot build {kind}({config}): {error}") from error
        weights[name] = weight
    if not losses:
        raise ValueError("losses must name at least one loss")
    return losses, weights


def _cut(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return x[..., : size[0], : size[1]]

"""ULSAM: Ultra-Lightweight Subspace Attention Module for Compact CNNs (WACV 2020, arXiv 2006.15102).

Official code: https://github.com/Nandan91/ULSAM (no licence file), ulsam.py.

Differs from the official code in:
- the subspaces share grouped operators in place of a module each: `ULSAM.merge_subspaces` converts official weights;
- on the CPU the first convolution and its normalisation are one affine map, whose statistics follow from those of `x`;
- the unused arguments `nout`, `h` and `w` are gone, and importing does not move PyTorch's default tensors to a GPU.

Golden: tests/golden/ulsam_module_*.npz (outputs, input gradients, running statistics).
"""

import re
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.ops import channel_moments, prefer_subspace_scores, residual_gate, subspace_attention, subspace_scores
from visionattn.utils.factory import FactoryKwargs

__all__ = ["ULSAM"]


class ULSAM(nn.Module):
    """Adds to each group of channels its product with the group's attention map. `(B, C, H, W)`, same out.

    The attention of a group is a soft-max over all positions, so the block starts and stays close to the identity.
    The paper inserts it into MobileNets or replaces whole layers by it.

    Args:
        channels: Width of the map.
        num_splits: Number of groups (subspaces), a divisor of `channels`; the paper tries 1, 2, 4, 8 and 16.
        bn_momentum: Momentum of both normalisations. The official 0.9 weighs the last batch with 90 %; 0.1 is
            PyTorch's custom.

    Raises:
        ValueError: If `channels` is no positive multiple of `num_splits`, or `bn_momentum` is not in (0, 1].
    """

    # Whether `forward` takes what comes after: `relu(plugin(x) + residual)` in one pass over the map.
    fuses_residual = True
    # The author's parameter names are ours once the subspaces are merged.
    official_keys = ()

    def __init__(
        self,
        channels: int,
        *,
        num_splits: int = 4,
        bn_momentum: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or num_splits < 1 or channels % num_splits:
            raise ValueError(
                f"channels must be a positive multiple of num_splits, got channels={channels}, num_splits={num_splits}"
            )
        if not 0 < bn_momentum <= 1:
            raise ValueError(f"bn_momentum must be above 0 and at most 1, got {bn_momentum}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_splits = num_splits
        self.conv_dws = nn.Conv2d(channels, channels, 1, groups=channels, **dd)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=bn_momentum, **dd)
        self.conv_point = nn.Conv2d(channels, num_splits, 1, groups=num_splits, **dd)
        self.bn_point = nn.BatchNorm2d(num_splits, momentum=bn_momentum, **dd)

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's defaults."""
        for layer in (self.conv_dws, self.bn_dws, self.conv_point, self.bn_point):
            layer.reset_parameters()

    @staticmethod
    def merge_subspaces(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Concatenates the entries of official modules' subspaces, in order; the other entries pass through.

        Args:
            state_dict: Weights with `<anything>subspaces.<n>.<name>` among the keys.

        Raises:
            ValueError: If the subspaces of a module are not numbered 0, 1, 2, ... for each entry.
        """
        merged: dict[str, torch.Tensor] = {}
        parts: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
        for key, value in state_dict.items():
            if match := re.fullmatch(r"(|.*\.)subspaces\.(\d+)\.(.+)", key):
                parts[match[1] + match[3]][int(match[2])] = value
            else:
                merged[key] = value
        for key, values in parts.items():
            if sorted(values) != list(range(len(values))):
                raise ValueError(f"{key} has the subspaces {sorted(values)}, they must be 0, 1, 2, ...")
            # Counters of batches have no dimension and agree.
            merged[key] = values[0] if values[0].ndim == 0 else torch.cat([values[n] for n in range(len(values))])
        return merged

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """The attention of each group: sums to 1 over the positions. `(B, C, H, W) -> (B, num_splits, H, W)`."""
        return self._of_scores(self._scores(x)).to(x.dtype)

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The attention of each group, `(B, num_splits, H, W)`, and the `gate` of each channel."""
        attention = self.attention(x)
        gate = 1 + attention.repeat_interleave(x.shape[1] // self.num_splits, dim=1)
        return {"spatial": attention, "gate": gate}

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        if not self._prefers_numbers(x):
            return residual_gate(x, self.attention(x), residual, relu)
        numbers = partial(self._numbers, x.numel() // x.shape[1])
        moments = self.bn_dws.training
        return subspace_attention(x, numbers, self._of_biased, self.num_splits, moments, residual, relu)

    def _prefers_numbers(self, x: torch.Tensor) -> bool:
        bn = self.bn_dws
        # Other normalisations (synchronised, frozen, averaging over all batches) have their own statistics; one value
        # has none.
        plain = type(bn) is nn.BatchNorm2d and bn.running_mean is not None and bn.momentum is not None
        return plain and prefer_subspace_scores(x) and not (bn.training and x.numel() < 2 * x.shape[1])

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        if not self._prefers_numbers(x):
            activated = F.relu(self.bn_dws(self.conv_dws(x)), inplace=True)
            return self.conv_point(F.max_pool2d(activated, 3, stride=1, padding=1))
        moments = channel_moments(x) if self.bn_dws.training else ()
        return self._biased(subspace_scores(x, *self._numbers(x.numel() // x.shape[1], *moments)))

    def _numbers(self, count: int, *moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale, shift and weight that do what the first convolution, its normalisation and the last one do.

        Args:
            count: Values of each channel.
            *moments: Mean and variance of each channel of the map; the running ones of the normalisation without.
        """
        conv, bn = self.conv_dws, self.bn_dws
        weight = conv.weight.flatten()
        bias: Any = conv.bias
        running: Any = (bn.running_mean, bn.running_var)
        momentum: Any = bn.momentum
        mean, var = running
        if moments:
            mean, var = weight * moments[0] + bias, weight.square() * moments[1]
            with torch.no_grad():
                if bn.num_batches_tracked is not None:
                    bn.num_batches_tracked.add_(1)
                running[0].lerp_(mean.to(running[0].dtype), momentum)
                running[1].lerp_((var * (count / (count - 1))).to(running[1].dtype), momentum)
        inverse = bn.weight * (var + bn.eps).rsqrt()
        return weight * inverse, bn.bias + (bias - mean) * inverse, self.conv_point.weight.flatten(1)

    def _biased(self, scores: torch.Tensor) -> torch.Tensor:
        bias = self.conv_point.bias
        return scores if bias is None else scores + bias.to(scores.dtype).view(-1, 1, 1)

    def _of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        scores = F.relu(self.bn_point(scores))
        return scores.flatten(2).softmax(-1).view_as(scores)

    def _of_biased(self, scores: torch.Tensor) -> torch.Tensor:
        return self._of_scores(self._biased(scores))


CARD = Card(
    name="ulsam",
    title="ULSAM: Ultra-Lightweight Subspace Attention Module",
    kind="plugin",
    factory=ULSAM,
    summary="one attention map for each group of channels",
    flow=(
        "(. | (. | depthwise 1x1 conv, norm, ReLU, max pool, 1x1 conv of each group -> softmax over positions) -> "
        "*) -> +"
    ),
    paper="arXiv:2006.15102",
    code="https://github.com/Nandan91/ULSAM",
    placement="after or in the place of whole layers of MobileNets",
    avoid="where a gate should change much: a softmax over all positions leaves each a factor of about 1 + 1 / (H W)",
    hosts=("resnet", "mobilenet", "narrow"),
    floor=Floor(3, 6, "statistics R (training), scores R, gate W; back two reductions of dy and x, then R and W"),
    maps=True,
    reference="ulsam",
)

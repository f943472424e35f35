"""BAM: Bottleneck Attention Module (BMVC 2018, arXiv 1807.06514).

Official code: https://github.com/Jongchan/attention-module (MIT), MODELS/bam.py.

Differs from the official code in:
- the channel gate averages the whole map (the official code averages an HxH square, wrong or impossible unless H = W);
- hidden widths are never below 1;
- `mode="sum"` offers the paper's formula beside the code's product;
- the two maps are never grown to full size before they are joined.

Golden: tests/golden/bam_*.npz (outputs, input gradients, running statistics).
"""

from collections import OrderedDict

import torch
from torch import nn

from visionattn.catalog import Card, Floor
from visionattn.ops import score_gate
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["BAM"]


class BAM(nn.Module):
    """`x * (1 + sigmoid(channel * spatial))`. `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1.

    `channel` is a score of each channel from a small MLP over its mean, `spatial` a score of each position from dilated
    convolutions over few channels. The paper puts one after each stage of a network but the last. In training the MLP's
    normalisation needs batches of at least 2.

    Args:
        channels: Width of the map.
        reduction: Divides `channels` to the hidden width of both branches (at least 1).
        num_layers: Hidden layers of the channel branch.
        num_dilated: Dilated 3x3 convolutions of the spatial branch.
        dilation: Their dilation.
        mode: How the two scores are joined: `product` as in the official code (and its weights) or `sum` as in the
            paper.

    Raises:
        ValueError: If a number is below 1 or `mode` is unknown.
    """

    # (pattern, replacement) pairs that turn the author's parameter names into ours.
    official_keys = (
        (r"channel_att\.gate_c\.gate_c_fc_final\.", "channel_gate.fc_out."),
        (r"channel_att\.gate_c\.gate_c_(fc|bn)_(\d+)\.", r"channel_gate.\1\2."),
        (r"spatial_att\.gate_s\.gate_s_(conv|bn)_reduce0\.", r"spatial_gate.\1_in."),
        (r"spatial_att\.gate_s\.gate_s_(conv|bn)_di_(\d+)\.", r"spatial_gate.\1\2."),
        (r"spatial_att\.gate_s\.gate_s_conv_final\.", "spatial_gate.conv_out."),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        num_layers: int = 1,
        num_dilated: int = 2,
        dilation: int = 4,
        mode: str = "product",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, reduction=reduction, num_layers=num_layers)
        check_positive(num_dilated=num_dilated, dilation=dilation)
        check_choice("mode", mode, ("product", "sum"))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.mode = mode
        hidden = max(channels // reduction, 1)

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(num_layers):
            layers[f"fc{index}"] = nn.Linear(hidden if index else channels, hidden, **dd)
            # Counted from 1, as in the official checkpoints.
            layers[f"bn{index + 1}"] = nn.BatchNorm1d(hidden, **dd)
            layers[f"act{index}"] = nn.ReLU()
        layers["fc_out"] = nn.Linear(hidden, channels, **dd)
        self.channel_gate = nn.Sequential(layers)

        layers = OrderedDict()
        layers["conv_in"] = nn.Conv2d(channels, hidden, 1, **dd)
        layers["bn_in"] = nn.BatchNorm2d(hidden, **dd)
        layers["act_in"] = nn.ReLU()
        for index in range(num_dilated):
            layers[f"conv{index}"] = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation, **dd)
            layers[f"bn{index}"] = nn.BatchNorm2d(hidden, **dd)
            layers[f"act{index}"] = nn.ReLU()
        layers["conv_out"] = nn.Conv2d(hidden, 1, 1, **dd)
        self.spatial_gate = nn.Sequential(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation: Kaiming normal convolutions, PyTorch's default MLP, biases zero."""
        for layer in (*self.channel_gate, *self.spatial_gate):
            if isinstance(layer, nn.ReLU):
                continue
            layer.reset_parameters()
            nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return score_gate(x, self.channel_gate, self.spatial_gate, self.mode)

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The scores of the channels `(B, C, 1, 1)` and of the positions `(B, 1, H, W)`, and the `gate` of both."""
        channel, spatial = self._scores(x)
        joint = channel * spatial if self.mode == "product" else channel + spatial
        return {"channel": channel, "spatial": spatial, "gate": 1 + joint.sigmoid()}

    def _scores(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.channel_gate(x.mean((2, 3)))[:, :, None, None], self.spatial_gate(x)


CARD = Card(
    name="bam",
    title="BAM: Bottleneck Attention Module",
    kind="plugin",
    factory=BAM,
    summary="one gate from channel and spatial scores, joined as the paper's sum or the code's product",
    flow="(. | (mean, MLP | 1x1 conv, dilated convs, 1x1 conv) -> * -> 1 + sigmoid) -> *",
    paper="arXiv:1807.06514",
    code="https://github.com/Jongchan/attention-module",
    license="MIT",
    placement="after each stage of a network but the last",
    avoid="in training with one picture a step: its channel gate normalises one vector a picture over the batch",
    floor=Floor(3, 5, "both scores R, gate R and W; back R dy, R x, then R dy, W dx, and R x for the convolution"),
    maps=True,
    reference="bam",
)

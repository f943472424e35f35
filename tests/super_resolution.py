"""HAN and A2N as their authors put them together, under their parameter names, with our blocks in their places."""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.models.builder import rename_keys
from visionattn.plugins import AttentionInAttention, ChannelSpatialAttention, LayerAttention, PixelAttention


def conv(channels, out):
    return nn.Conv2d(channels, out, 3, padding=1)


class Squeeze(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        first, second = nn.Conv2d(channels, channels // reduction, 1), nn.Conv2d(channels // reduction, channels, 1)
        self.conv_du = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())

    def forward(self, x):
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x) + x


class HAN(nn.Module):
    def __init__(self, *, groups, blocks, features, reduction, scale):
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(conv(3, features))

        def block():
            layers = conv(features, features), nn.ReLU(), conv(features, features), Squeeze(features, reduction)
            return Residual(*layers)

        body = [Residual(*(block() for _ in range(blocks)), conv(features, features)) for _ in range(groups)]
        self.body = nn.Sequential(*body, conv(features, features))
        self.csa = ChannelSpatialAttention(features)
        self.la = LayerAttention(features, layers=groups + 1)
        self.last_conv = conv((groups + 1) * features, features)
        self.last = conv(2 * features, features)
        enlarge = nn.Sequential(conv(features, scale**2 * features), nn.PixelShuffle(scale))
        self.tail = nn.Sequential(enlarge, conv(features, 3))

    def forward(self, x):
        head = x = self.head(self.sub_mean(x))
        outputs = []
        for part in self.body:
            x = part(x)
            outputs.insert(0, x)
        layers = self.last_conv(self.la(torch.stack(outputs, dim=1)))
        return self.add_mean(self.tail(self.last(torch.cat((self.csa(x), layers), dim=1)) + head))


class A2N(nn.Module):
    def __init__(self, *, scale, features, upsample_features, blocks):
        super().__init__()
        self.scale, self.steps = scale, (2, 2) if scale == 4 else (scale,)
        self.conv_first = conv(3, features)
        self.AAB_trunk = nn.Sequential(*(AttentionInAttention(features) for _ in range(blocks)))
        self.trunk_conv = conv(features, features)
        for number in range(1, 1 + len(self.steps)):
            self.add_module(f"upconv{number}", conv(features if number == 1 else upsample_features, upsample_features))
            self.add_module(f"att{number}", PixelAttention(upsample_features))
            self.add_module(f"HRconv{number}", conv(upsample_features, upsample_features))
        self.conv_last = conv(upsample_features, 3)

    def forward(self, x):
        out = self.conv_first(x)
        out = out + self.trunk_conv(self.AAB_trunk(out))
        for number, step in enumerate(self.steps, 1):
            out = self.get_submodule(f"upconv{number}")(F.interpolate(out, scale_factor=step))
            out = F.leaky_relu(self.get_submodule(f"att{number}")(out), 0.2)
            out = F.leaky_relu(self.get_submodule(f"HRconv{number}")(out), 0.2)
        plain = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.conv_last(out) + plain


def a2n_keys(state_dict):
    """The authors' parameters of A2N under our names."""
    return rename_keys(state_dict, AttentionInAttention.official_keys)

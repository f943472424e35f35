"""Networks of other libraries' kinds, which none of ours knows: Hugging Face's, ultralytics' and a home-made one."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class ModelOutput:
    """What Hugging Face's models return."""

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None

    def __getitem__(self, index):
        return (self.last_hidden_state, self.hidden_states)[index]


class ConvLayer(nn.Module):
    def __init__(self, inside, outside, size=3, stride=1, activation=nn.ReLU):
        super().__init__()
        self.convolution = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outside)
        self.activation = activation()

    def forward(self, input):
        return self.activation(self.normalization(self.convolution(input)))


class HubLayer(nn.Module):
    """A residual block that computes its shortcut last."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        changes = inside != outside or stride > 1
        self.shortcut = ConvLayer(inside, outside, 1, stride, nn.Identity) if changes else nn.Identity()
        self.layer = nn.Sequential(
            ConvLayer(inside, outside, 1),
            ConvLayer(outside, outside, 3, stride),
            ConvLayer(outside, outside, 1, 1, nn.Identity),
        )
        self.activation = nn.ReLU()

    def forward(self, hidden_state):
        residual = hidden_state
        hidden_state = self.layer(hidden_state)
        residual = self.shortcut(residual)
        hidden_state += residual
        return self.activation(hidden_state)


class HubStage(nn.Module):
    def __init__(self, inside, outside, depth):
        super().__init__()
        self.layers = nn.Sequential(
            HubLayer(inside, outside, 2), *(HubLayer(outside, outside) for _ in range(depth - 1))
        )

    def forward(self, input):
        for layer in self.layers:
            input = layer(input)
        return input


class HubEncoder(nn.Module):
    def __init__(self, widths, depth):
        super().__init__()
        pairs = zip((8, *widths), widths, strict=False)
        self.stages = nn.ModuleList(HubStage(inside, outside, depth) for inside, outside in pairs)

    def forward(self, hidden_state, output_hidden_states=False, return_dict=True):
        states = ()
        for stage in self.stages:
            states += (hidden_state,)
            hidden_state = stage(hidden_state)
        return ModelOutput(hidden_state, states if output_hidden_states else None)


class HubResNet(nn.Module):
    """As `transformers`' ResNetModel: keyword input, outputs as a dataclass, blocks without a drop path."""

    def __init__(self, widths=(8, 16, 24, 32), depth=2):
        super().__init__()
        self.embedder = ConvLayer(3, 8, 7, 2)
        self.encoder = HubEncoder(widths, depth)
        self.pooler = nn.AdaptiveAvgPool2d(1)

    def forward(self, pixel_values=None, output_hidden_states=None):
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        encoded = self.encoder(self.embedder(pixel_values), output_hidden_states=True)
        return ModelOutput(self.pooler(encoded[0]), encoded.hidden_states)


class Conv(nn.Module):
    shared = nn.SiLU()  # one activation for all, as ultralytics has it

    def __init__(self, inside, outside, size=1, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside)
        self.act = self.shared

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Called as ResNet's block, and laid out otherwise."""

    def __init__(self, width, shortcut=True):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, inside, outside, depth=1, shortcut=True):
        super().__init__()
        self.half = outside // 2
        self.cv1, self.cv2 = Conv(inside, outside), Conv((2 + depth) * self.half, outside)
        self.m = nn.ModuleList(Bottleneck(self.half, shortcut) for _ in range(depth))

    def forward(self, x):
        parts = list(self.cv1(x).split((self.half, self.half), 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


class Concat(nn.Module):
    def forward(self, x):
        return torch.cat(x, 1)


class Detect(nn.Module):
    """Keeps what depends on the last size, and gives several tensors."""

    def __init__(self, widths):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(width, 5, 1) for width in widths)
        self.shape, self.anchors = None, torch.empty(0)

    def forward(self, x):
        maps = [head(y) for head, y in zip(self.heads, x, strict=True)]
        if self.shape != x[0].shape:
            self.shape, self.anchors = x[0].shape, torch.ones(1, 1, sum(y[0, 0].numel() for y in maps)).to(x[0])
        return torch.cat([y.flatten(2) for y in maps], 2) * self.anchors, maps


class Yolo(nn.Module):
    """As ultralytics' models: a list of layers, wired by numbers that are kept on them."""

    def __init__(self):
        super().__init__()
        layers = [  # from, layer
            (-1, Conv(3, 8, 3, 2)),
            (-1, Conv(8, 16, 3, 2)),
            (-1, C2f(16, 16, 2)),
            (-1, Conv(16, 32, 3, 2)),
            (-1, C2f(32, 32)),
            (-1, nn.Upsample(scale_factor=2)),
            ([-1, 2], Concat()),
            (-1, C2f(48, 16, 1, False)),
            ([7, 4], Detect((16, 32))),
        ]
        for number, (source, layer) in enumerate(layers):
            layer.i, layer.f = number, source
        self.model = nn.Sequential(*(layer for _, layer in layers))

    def forward(self, x):
        outputs = []
        for layer in self.model:
            if layer.f != -1:
                sources = layer.f if isinstance(layer.f, list) else [layer.f]
                x = [x if source == -1 else outputs[source] for source in sources]
            x = layer(x)
            outputs.append(x)
        return x


class TwoInputs(nn.Module):
    """Needs a small map of four channels and a time, and looks at its data, so that it can't run without."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.first, self.block = nn.Conv2d(4, 8, 3, padding=1), TimedBlock(8)
        self.head = nn.Linear(8 * 6 * 10, 2)

    def forward(self, map, time):
        if not time.isfinite().all():
            raise ValueError("time must be finite")
        return {"scores": self.head(self.block(self.first(map), shift=self.time(time)).flatten(1))}


class TimedBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, shift):
        return torch.relu(self.conv(x) + shift[..., None, None]) * 2

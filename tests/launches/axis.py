"""Pools over axes and gates that lack some, as triplet attention, CBAM and coordinate attention launch them."""

import torch

from launches import SHAPE, Call, meta
from visionattn.ops.triton import _axis_launch as launch


def _calls(layout: str, shape: tuple[int, int, int, int] = SHAPE, slow: bool = False, **kwargs) -> list[Call]:
    batch, channels, height, width = shape
    x = meta(*shape, layout=layout, **kwargs)

    def small(*sizes: int) -> torch.Tensor:
        return meta(batch, *sizes, **kwargs)

    def index(*sizes: int) -> torch.Tensor:
        return meta(batch, *sizes, dtype=torch.int32)

    rows, columns = small(channels, height, 1), small(channels, 1, width)
    channel, position = small(channels, 1, 1), small(1, height, width)
    triplet = [columns, rows, position]
    pools = [small(height, width), small(channels, width), small(channels, height)]
    indices = [index(height, width), index(channels, width), index(channels, height)]
    each = small(channels)
    name = "-".join([layout, "x".join(map(str, shape[1:])), *(str(value)[6:] for value in kwargs.values())])
    shapes = [list(shape), layout == "NHWC"]
    # The map's own loads, where its rows are aligned: small tensors need no wide ones.
    aligned = (channels if layout == "NHWC" else width) % 8 == 0
    kernels = ("pool", "gate", "gate_backward") if aligned else False
    usual = ("triplet-pools", "cbam-gate-backward", "triplet-pools-backward")
    return [
        Call(f"{name}-{part}", op, args, vectors=kernels, slow=slow or part not in usual)
        for part, op, args in [
            ("triplet-pools", launch.axis_pool, (x, None, [4, 2, 1], [4, 2, 1])),
            ("product-pools", launch.axis_pool, (x, channel, [4], [4])),
            ("triplet-gate", launch.axis_gate, (x, triplet, None, "sum", False, False, False)),
            ("residual-gate", launch.axis_gate, (x, [channel, position], x, "product", False, False, True)),
            ("triplet-gate-backward", launch.axis_gate_backward, (x, None, x, triplet, "sum", *[False] * 4)),
            (
                "cbam-gate-backward",
                launch.axis_gate_backward,
                (x, x, x, [channel, position], "product", False, False, True, True),
            ),
            (
                "mixed-gate-backward",
                launch.axis_gate_backward,
                (x, None, x, [rows, columns, channel], "mixed", False, False, True, False),
            ),
            ("product-pools-backward", launch.axis_pool_backward, (x, x, channel, pools[0], pools[0], indices[0], 4)),
            ("inner-pools-backward", launch.axis_pool_backward, (None, x, channel, pools[0], pools[0], indices[0], 4)),
            (
                "nested-backward",
                launch.axis_spread,
                (
                    *(x, None, [channel, position], "product", False, False, *shapes),
                    *([each, pools[0]], [3, 4], [each, pools[0]], [index(channels), indices[0]], [3, 4], 4),
                ),
            ),
            (
                "scores-backward",
                launch.axis_spread,
                (x, x, [channel, position], "product", True, True, *shapes, [each], [3], [], [], [], 0),
            ),
            (
                "triplet-pools-backward",
                launch.axis_spread,
                (x, None, triplet, "sum", False, False, *shapes, pools, [4, 2, 1], pools, indices, [4, 2, 1], 0),
            ),
        ]
    ]


CALLS = [
    *(call for layout in ("NCHW", "NHWC") for call in _calls(layout)),
    *(
        call
        for layout in ("NCHW", "NHWC")
        for shape in (SHAPE, (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7), (8, 67, 113, 200))
        for dtype in (torch.float32, torch.float16)
        for call in _calls(layout, shape, slow=True, dtype=dtype)
    ),
]

"""Scores of subspaces and moments of channels, as ULSAM launches them; its gate is `axis_gate` on views."""

import torch

from launches import SHAPE, Call, meta
from visionattn.ops.triton import subspace

GROUPS = 4


def _calls(layout: str, shape: tuple[int, int, int, int] = SHAPE, slow: bool = False, **kwargs) -> list[Call]:
    batch, channels, height, width = shape
    x = meta(*shape, layout=layout, **kwargs)
    numbers = meta(channels, dtype=torch.float32), meta(channels, dtype=torch.float32)
    weight = meta(GROUPS, channels // GROUPS, dtype=torch.float32)
    each = meta(batch, channels, dtype=torch.float32)
    grad = meta(batch, GROUPS, height, width, **kwargs)
    name = "-".join([layout, "x".join(map(str, shape[1:])), *(str(value)[6:] for value in kwargs.values())])
    # The neighbours of a cell of an NCHW map stand beside it: only one of three loads is aligned.
    around = layout == "NHWC"
    backward = (grad, x, *numbers, weight)
    alone, joint = (None, None, None, None, True, True), (x, grad, each, each, True, False)
    sums = (None, None, None, None, False, True)
    return [
        Call(f"{name}-scores", subspace.group_scores, (x, *numbers, weight), vectors=around, slow=slow),
        Call(f"{name}-backward", subspace.group_scores_backward, (*backward, *alone), vectors=around, slow=slow),
        Call(f"{name}-joint-backward", subspace.group_scores_backward, (*backward, *joint), vectors=around, slow=slow),
        Call(f"{name}-sums", subspace.group_scores_backward, (*backward, *sums), vectors=around, slow=slow),
        Call(f"{name}-moments", subspace.image_moments, (x,), slow=slow),
        Call(f"{name}-affine", subspace.image_affine, (x, each, each), slow=slow),
    ]


CALLS = [
    *(call for layout in ("NCHW", "NHWC") for call in _calls(layout)),
    *(call for layout in ("NCHW", "NHWC") for call in _calls(layout, slow=True, dtype=torch.float32)),
    *(call for call in _calls("NHWC", (128, 2048, 7, 7), slow=True)),
]

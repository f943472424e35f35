"""LKCA: Large Kernel Convolutional Attention (arXiv 2401.05738).

Written from the abstracts and a description of the algorithm: neither the full text nor the authors' code was to be
had, so no parity with it is claimed. Known is that one large static kernel takes the place of the attention map, and
how the map is read off it. The rest is left to arguments: how many kernels there are (`groups`), whether projections
remain around them (`value_proj`, `proj`), a bias, the start, kernels smaller than the grid (`kernel_size`), and what
happens on other grids (`resize`). A class token has no place on a grid: keep it out, or let it pass by.

Differs from the official code in: not known.

Golden: tests/golden/lkca_*.npz (outputs and input gradients of an independent literal implementation).
"""

from math import prod
from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card
from visionattn.ops import interpolate_kernel, large_kernel_conv, toeplitz_matrix
from visionattn.utils.arguments import check_choice, check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

__all__ = ["LargeKernelConvAttention"]

_BACKENDS = (None, "conv", "matmul", "fft")
_GROUPS = ("shared", "heads", "channels")
_RESIZES = ("interpolate", "extend")


class LargeKernelConvAttention(nn.Module):
    """Mixes positions with a learnt weight for each offset. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The same as an attention map that depends on the parameters alone, the same for every image.

    Args:
        dim: Width of the map.
        grid_size: The grid that the kernel spans from end to end, side or (height, width): it has `2 * grid_size - 1`
            taps. 14 is a 224 px image in patches of 16.
        kernel_size: Taps of the kernel, odd, side or (height, width), instead of those of `grid_size`. Such a kernel is
            taken as it is on every grid.
        groups: Who has a kernel: `shared`, one for all (the words of the abstract); `heads`, one for each of
            `num_heads` runs of channels; `channels`, one for each.
        num_heads: Number of kernels with `groups='heads'`; divides `dim`.
        bias: Add one number per channel to what the kernel gives.
        value_proj: Project the map before, as attention projects its values.
        qkv_bias: Bias of that projection.
        proj: Project the map after.
        proj_drop: Dropout at the end.
        identity_start: Start as `proj(v(x))`, with 1 at the centre of the kernel: no position sees another.
        init_std: Spread of the kernel's start. None is 1 / sqrt(number of positions it weighs), which keeps the
            variance of the map; zero with `identity_start`.
        resize: What becomes of the kernel of `grid_size` on larger grids, along each axis: `interpolate` stretches
            it until it spans them, at the same sum over what a position sees (an identity start becomes a small
            blur); `extend` takes it as zero outside. On smaller grids the centre remains.
        backend: How it is computed, see `visionattn.ops.large_kernel_conv`; None chooses by the shapes.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        grid_size: int | tuple[int, int] = 14,
        kernel_size: int | tuple[int, int] | None = None,
        groups: str = "shared",
        num_heads: int = 8,
        bias: bool = False,
        value_proj: bool = True,
        qkv_bias: bool = False,
        proj: bool = True,
        proj_drop: float = 0.0,
        identity_start: bool = False,
        init_std: float | None = None,
        resize: str = "interpolate",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("groups", groups, _GROUPS)
        check_choice("resize", resize, _RESIZES)
        check_choice("backend", backend, _BACKENDS)
        check_positive(dim=dim)
        if groups == "heads":
            check_heads(dim, num_heads)
        grid, taps = pair("grid_size", grid_size), None
        if kernel_size is not None:
            taps = pair("kernel_size", kernel_size)
            if not all(side % 2 for side in taps):
                raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.resize = "extend" if taps else resize
        self.backend = backend
        self.identity_start = identity_start
        if init_std is None:
            init_std = 0.0 if identity_start else prod(taps or grid) ** -0.5
        self.init_std = init_std
        kernels = {"shared": 1, "heads": num_heads, "channels": dim}[groups]
        self.kernel = nn.Parameter(torch.empty(kernels, 1, *(taps or (2 * side - 1 for side in grid)), **dd))
        self.bias = nn.Parameter(torch.empty(dim, **dd)) if bias else None
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd) if value_proj else nn.Identity()
        self.proj = nn.Linear(dim, dim, **dd) if proj else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialises the kernel and the bias."""
        nn.init.normal_(self.kernel, std=self.init_std)
        if self.identity_start:
            with torch.no_grad():
                self.kernel[:, :, self.kernel.size(2) // 2, self.kernel.size(3) // 2] += 1
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = large_kernel_conv(self.v(x), self._kernel_on(x.size(1), x.size(2)), backend=self.backend)
        if self.bias is not None:
            x = x + self.bias
        return self.proj_drop(self.proj(x))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each, `(B, G, N, N)`, of a map `(B, H, W, C)`: the same for every image."""
        return self.build_matrix(x.size(1), x.size(2)).expand(x.size(0), -1, -1, -1)

    def build_matrix(self, height: int, width: int) -> torch.Tensor:
        """The attention maps on a grid, `(G, N, N)`, one row per query position. For inspection."""
        return toeplitz_matrix(self._kernel_on(height, width), height, width)

    def _kernel_on(self, height: int, width: int) -> torch.Tensor:
        return interpolate_kernel(self.kernel, height, width) if self.resize == "interpolate" else self.kernel


def _keywords(context: BlockContext) -> dict[str, Any]:
    return {"groups": "heads", **({"grid_size": context.grid} if context.grid else {})}


CARD = Card(
    name="lkca",
    title="LKCA: Large Kernel Convolutional Attention",
    kind="mixer",
    factory=LargeKernelConvAttention,
    summary="one static kernel as large as the map in the place of the attention map",
    flow="v -> one static kernel as large as the map -> proj",
    paper="arXiv:2401.05738",
    placement="in every block in place of attention",
    avoid="where the picture should decide what is looked at: the map is one learnt kernel, the same for every picture",
    pyramid=("nano", "micro", "tiny"),
    keywords=_keywords,
    cases={"": {"grid_size": 8}, "depthwise": {"grid_size": 8, "groups": "channels"}},
    cost="N^2, or N log N by FFT",
    memory="N",
    maps=True,
    reference="lkca",
)

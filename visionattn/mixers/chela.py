"""CHELA: short-long convolutions with hardware-efficient linear attention (ICML 2024, arXiv 2406.08128).

Written from the abstract: no official code was to be had, nor the figure of the layer. Known is that Mega's moving
average gives way to convolutions of several lengths, which one kernel stands for once they are learnt, and softmax to
linear attention, within gates like Mega's. How they are wired is ours, on Mega's layer. The paper's are sequences that
look back, in tiles; a map has no future, so attention is one product.

Differs from the official code in: not known.

Golden: tests/golden/chela_*.npz (outputs and input gradients of an independent literal implementation).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import large_kernel_conv, summed_attention, widened
from visionattn.utils.arguments import check_odd

from ._gated_skeleton import GatedSkeleton

__all__ = ["CHELA"]


class CHELA(GatedSkeleton):
    """Gated linear attention with queries and keys of convolutions. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The layer holds its own residual connection and gate, `x + u (h - x)`. **What comes out is that minus x**, for the
    residual connection of a host. There is one head, and no place for extra tokens: pool the mean.

    Args:
        dim: Width C.
        zdim: Width z of queries and keys, by default half of `dim`.
        hdim: Width e of values, by default twice `dim`.
        short: Side of the short kernels, odd; none leaves them out.
        long: Side of the long kernels, likewise.
        strip: Whether a long kernel is a row plus a column instead of a square.
        update_gate: Whether there is u. Without it what comes out is h, an ordinary residual branch.
        proj_drop: Dropout of h.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If a width is below 1 or a side is even.
    """

    def __init__(
        self,
        dim: int,
        *,
        zdim: int | None = None,
        hdim: int | None = None,
        short: int | None = 3,
        long: int | None = 13,
        strip: bool = False,
        update_gate: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim, zdim=zdim, hdim=hdim, update_gate=update_gate, proj_drop=proj_drop, device=device, dtype=dtype
        )
        check_odd(**{name: side for name, side in (("short", short), ("long", long)) if side is not None})

        def kernel(height: int | None, width: int | None, centre: float = 0.0) -> _Kernel | None:
            if height is None or width is None:
                return None
            return _Kernel(dim, height, width, centre, device, dtype)

        self.strip = strip
        self.norm = nn.LayerNorm(dim, eps=1e-5, device=device, dtype=dtype)
        self.short = kernel(short, short, centre=1.0)
        if strip:
            self.long_w, self.long_h = kernel(1, long), kernel(long, 1)
        else:
            self.long = kernel(long, long)
        self.attn_norm = nn.RMSNorm(self.v_proj.out_features, eps=1e-5, device=device, dtype=dtype)

    def norm_in(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the convolutions, then SiLU; without convolutions, SiLU alone."""
        parts = [large_kernel_conv(x, kernel) for kernel in self._kernels()]
        return F.silu(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else x)

    def read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = k.flatten(1, 2)
        read = summed_attention(q.flatten(1, 2), keys, v.flatten(1, 2), scale=_scale(keys))
        read = F.rms_norm(read, read.shape[-1:], self.attn_norm.weight.to(read.dtype), self.attn_norm.eps)
        return read.to(v.dtype).view(v.shape)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention matrix before the norm, `(B, 1, N, N)`, of a map `(B, H, W, C)`; entries may be negative."""
        q, k = (widened(part).flatten(1, 2) for part in self.queries_keys(x))
        return (q @ k.mT * _scale(k)).unsqueeze(1)

    def fuse(self) -> "CHELA":
        """Merges the short and the long kernel for inference; results are unchanged.

        Raises:
            ValueError: If there are not both, as squares.
        """
        if self.strip or self.short is None or self.long is None:
            raise ValueError("only a short and a square long kernel make one: short, long and strip=False are needed")
        (kernel,) = self._kernels()
        self.long.weight = nn.Parameter(kernel.detach(), requires_grad=self.long.weight.requires_grad)
        self.short = None
        return self

    def _kernels(self) -> list[torch.Tensor]:
        """The kernels of the convolutions. Squares make one, which costs as much as the larger."""
        if self.strip:
            return [part.weight for part in (self.short, self.long_w, self.long_h) if part is not None]
        squares: list[torch.Tensor] = sorted(
            (part.weight for part in (self.short, self.long) if part is not None), key=lambda kernel: kernel.size(-1)
        )
        if len(squares) == 2:
            rim = (squares[1].size(-1) - squares[0].size(-1)) // 2
            return [squares[1] + F.pad(squares[0], (rim, rim, rim, rim))]
        return squares


class _Kernel(nn.Module):
    """A kernel for each channel; not a convolution layer, since hosts reinitialise those.

    Args:
        dim: Channels.
        height: Of the kernel.
        width: Of the kernel.
        centre: Added to the tap in the middle.
    """

    def __init__(
        self,
        dim: int,
        height: int,
        width: int,
        centre: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, height, width, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)
        with torch.no_grad():
            self.weight[:, :, height // 2, width // 2] += centre


def _scale(keys: torch.Tensor) -> float:
    """One over the number of keys, and over the root of their width."""
    return 1 / (keys.size(1) * keys.size(2) ** 0.5)


CARD = Card(
    name="chela",
    title="CHELA: short-long convolutions with linear attention",
    kind="mixer",
    factory=CHELA,
    summary="gated linear attention on top of a short and a long convolution, which make one",
    flow=(
        "norm -> ((short conv | long conv) -> + -> SiLU -> q and k | v) -> linear attention, norm -> output gate "
        "-> update gate"
    ),
    paper="arXiv:2406.08128",
    placement="in every block in place of attention",
    avoid="to reproduce the paper's layer: its code and figures were not to be had, and how the parts are wired "
    "is ours",
    pyramid=("nano", "micro"),
    columnar=("nano", "tiny"),
    cases={"": {}, "strip": {"strip": True, "long": 7}, "no convolutions": {"short": None, "long": None}},
    maps=True,
    reference="chela",
)

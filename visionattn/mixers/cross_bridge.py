"""A gated bridge from one encoder to another by cross attention (LLM Modules, arXiv 2502.08213), in a form for images.

There, a small language model reads what a large frozen one knows. This follows the paper's text; its code was not read.

Differs from the paper in: tokens or maps of two image encoders; the adapter's last layer starts at zero, so that the
encoder that reads starts as it was.

Golden: none; the test compares it with its literal formula.
"""

from typing import Any

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.utils.arguments import check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["GatedCrossAttention"]


class GatedCrossAttention(nn.Module):
    """Tokens of one encoder read those of another: `x + sigmoid(gate(x)) * adapter(attention(x, source))`.

    `(B, N, C), (B, M, D) -> (B, N, C)`; each may be a map `(B, H, W, .)` of any size. The adapter is a layer, a GELU
    and a layer that starts at zero: a new bridge changes nothing. The residual is inside: do not add another.

    Args:
        dim: Width C of the tokens that read.
        source_dim: Width D of those that are read; C by default.
        num_heads: Heads, a divisor of `dim` without `head_dim`.
        head_dim: Width of a head; `dim / num_heads` if None.
        hidden_dim: Width between the adapter's layers; C by default.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of what is added.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a number is below 1; in forward, if the tokens do not have
            these widths, or not the same batch.
    """

    def __init__(
        self,
        dim: int,
        *,
        source_dim: int | None = None,
        num_heads: int = 8,
        head_dim: int | None = None,
        hidden_dim: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None:
            check_heads(dim, num_heads)
            head_dim = dim // num_heads
        source_dim = dim if source_dim is None else source_dim
        hidden_dim = dim if hidden_dim is None else hidden_dim
        check_positive(dim=dim, num_heads=num_heads, head_dim=head_dim, source_dim=source_dim, hidden_dim=hidden_dim)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        width = num_heads * head_dim
        self.q = nn.Linear(dim, width, bias=qkv_bias, **dd)
        self.kv = nn.Linear(source_dim, 2 * width, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.adapter = nn.Sequential(nn.Linear(width, hidden_dim, **dd), nn.GELU(), nn.Linear(hidden_dim, dim, **dd))
        self.gate = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """Sets the adapter's last layer to zero."""
        last: Any = self.adapter[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens with what they read.

        Args:
            x: `(B, N, C)` or `(B, H, W, C)`.
            source: `(B, M, D)` or `(B, H', W', D)`.
            mask: False for tokens of `source` that are not seen, bool, `(B, M)`; one must be left.
        """
        tokens, q, k, v = self._parts(x, source)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != k.shape[:1] + k.shape[2:3]):
            expected = (k.shape[0], k.shape[2])
            raise ValueError(f"mask must be bool of shape {expected}, got {mask.dtype} {tuple(mask.shape)}")
        dropped = self.attn_drop.p if self.training else 0.0
        read = attention(q, k, v, mask=None if mask is None else mask[:, None, None], dropout_p=dropped)
        added = self.gate(tokens).sigmoid() * self.adapter(read)
        return (tokens + self.proj_drop(added)).view(x.shape)

    def weights(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, M)`."""
        _, q, k, _ = self._parts(x, source)
        return (q @ k.mT * q.shape[3] ** -0.5).softmax(-1)

    def _parts(
        self, x: torch.Tensor, source: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tokens, and queries, keys and values, `(B, num_heads, ., d)`."""
        for name, given, width in (("x", x, self.q.in_features), ("source", source, self.kv.in_features)):
            if given.ndim not in (3, 4) or given.shape[-1] != width:
                raise ValueError(
                    f"{name} must be tokens (B, N, {width}) or a map (B, H, W, {width}), got {tuple(given.shape)}"
                )
        if x.shape[0] != source.shape[0]:
            raise ValueError(f"x and source must have the same batch, got {tuple(x.shape)} and {tuple(source.shape)}")
        tokens = x.flatten(1, -2)
        q = self.q(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(source.flatten(1, -2)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return tokens, q, k, v


CARD = Card(
    name="cross_bridge",
    title="Gated cross attention between two encoders",
    kind="mixer",
    factory=GatedCrossAttention,
    summary="tokens of one encoder read those of another one, through an adapter and a gate that start at nothing",
    flow="(. | (q | <source> -> its k and v) -> softmax attention -> adapter -> * gate) -> +",
    paper="arXiv:2502.08213",
    placement="between the blocks of a network and the features of another one, which may be frozen",
    avoid="with one encoder, or where both saw the same in training: the features of the other then add little",
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    maps=True,
    further_inputs=("source",),
    reference="cross_bridge",
)

"""DHVT's head-interacted attention, with head tokens (NeurIPS 2022, arXiv 2210.05958).

Official code: https://github.com/ArieSeirack/DHVT (Apache-2.0), vision_transformer.py. The feed-forward and the stem of
the paper are in `visionattn.models.families.va_dhvt`.

Differs from the official code in:
- without a class token the head tokens are keys and values only, as there is nothing to add their outputs to.

Golden: tests/golden/dhvt_hiattn_*.npz and dhvt_block_*.npz.
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.ops import attention
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import TokenMixer, split_heads

__all__ = ["HeadInteractionAttention"]


class HeadInteractionAttention(TokenMixer):
    """Softmax attention with an additional token for each head. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The mean of a head's share of the channels over all tokens, widened to C, is that head's token. The head tokens take
    part in attention; the mean of what comes out of them is added to the class token.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.ht_proj = nn.Linear(dim // num_heads, dim, **dd)
        self.ht_norm = nn.LayerNorm(dim // num_heads, **dd)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_heads, dim, **dd), std=0.02))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first, of these the class token first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens; the head tokens' outputs go to the first.
        """
        count = x.shape[1]
        q, k, v = self._heads(x)
        if not prefix:
            q = q[:, :, :count]
        out = self.proj_drop(self.proj(attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)))
        if not prefix:
            return out
        first = out[:, :1] + out[:, count:].mean(1, keepdim=True)
        return torch.cat([first, out[:, 1:count]], 1)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`.

        The rows sum up to what the head tokens leave.
        """
        tokens = x.flatten(1, -2)
        q, k, _ = self._heads(tokens)
        count = tokens.shape[1]
        return (q[:, :, :count] @ k.mT * q.size(-1) ** -0.5).softmax(-1)[..., :count]

    def head_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of the heads, `(B, num_heads, C)`, from all others, `(B, N, C)`."""
        means = x.mean(1).unflatten(-1, (self.num_heads, -1))
        parts = self.ht_proj(means).unflatten(-1, (self.num_heads, -1))
        return F.gelu(self.ht_norm(parts)).flatten(2) + self.pos_embed

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of tokens and head tokens, `(B, heads, N + heads, C / heads)` each."""
        together = self.qkv(torch.cat([x, self.head_tokens(x).to(x.dtype)], 1))
        return split_heads(together, self.num_heads)


CARD = Card(
    name="dhvt",
    title="DHVT: head-interacted attention",
    kind="mixer",
    factory=HeadInteractionAttention,
    summary="attention of all tokens and of one more for each head, which sums up what the head sees",
    flow=(
        "(. | mean of each head's channels, widened) -> concat -> ((q | k) -> @ -> softmax | v) -> @ -> proj -> "
        "drop head tokens"
    ),
    paper="arXiv:2210.05958",
    code="https://github.com/ArieSeirack/DHVT",
    license="Apache-2.0",
    placement="in every block in place of attention",
    avoid="where data are plenty: it was made to learn from small sets, and adds a token for each head to all pairs",
    columnar=("nano", "tiny"),
    cases={"": {"num_heads": 3}, "no bias": {"num_heads": 4, "qkv_bias": False}},
    floor=Floor(
        11, 20, "means: R; q, k, v in, o out: 4; back q, k, v, do in, dq, dk, dv out: 7, means: W; projections"
    ),
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
    reference="dhvt",
)

"""SPA: Select and Pack Attention (Context-Aware Token Selection and Packing for Enhanced Vision Transformer,
arXiv 2410.23608).

There is no official code; this follows the paper's equations. Chosen here, as the paper leaves it open: the scale is
that of a head, tokens that are not kept get 0 (what the residual adds to stays), and the threshold is 0.5.

Differs from the paper in:
- `packing="image"`, the default: each image starts a container of its own. The paper packs all images one after
  another, so the result of an image depends on where it stands in the batch: `packing="batch"`;
- any size, extra tokens, which are always kept, and a loss that holds the share of kept tokens near a ratio where there
  are no labels.

Golden: tests/golden/spa_*.npz, made from the equations (outputs, kept tokens, containers, scores).
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card, get
from visionattn.ops import pack_tokens, packed_attention
from visionattn.ops.losses import Losses, add_loss
from visionattn.utils.arguments import check_choice, check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, split_heads

__all__ = ["SelectPackAttention"]


class Selection(NamedTuple):
    """The selection of tokens by the gate, `(B, N)` each: scores (logits), kept or not, container or -1."""

    scores: torch.Tensor
    kept: torch.Tensor
    container: torch.Tensor


class SelectPackAttention(nn.Module):
    """Attention among the tokens that a gate keeps, in containers of a fixed length. `(B, H, W, C) -> (B, H, W, C)`.

    The score of a token is a linear layer of it; its sigmoid multiplies the token, and decides whether it is kept.
    Kept tokens fill containers row by row and see those of their own container and image; the others get 0. Any H,
    W >= 1. With `ratio` or labels, the loss `selection` goes to the collector in training.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        container: Tokens of a container; the paper has those of a Swin window.
        threshold: Tokens are kept whose score has a sigmoid above it.
        packing: `image`, each image has containers of its own, or `batch`, all images of a batch fill the same ones.
        shift: By how much the map is rolled up and to the left before packing; the paper does so in every second block.
        noise: Scale of the Gumbel noise that training adds to the scores for the decision; the paper has 1.
        ratio: Share of tokens to keep, for the loss without labels; no loss if None.
        loss_weight: Factor of the loss.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    has_losses = True

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        container: int = 49,
        threshold: float = 0.5,
        packing: str = "image",
        shift: int | tuple[int, int] = 0,
        noise: float = 0.0,
        ratio: float | None = None,
        loss_weight: float = 0.01,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(container=container)
        check_choice("packing", packing, ("image", "batch"))
        for name, value in (("threshold", threshold), ("ratio", 0.5 if ratio is None else ratio)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        for name, value in (("noise", noise), ("loss_weight", loss_weight)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.container = container
        self.threshold = threshold
        self.packing = packing
        self.shift = pair("shift", shift, least=0)
        self.noise = noise
        self.ratio = ratio
        self.loss_weight = loss_weight
        self.gate = nn.Linear(dim, 1, **dd)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: torch.Tensor,
        score_up: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        losses: Losses | None = None,
    ) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        out = self.forward_tokens(x.flatten(1, 2), grid, score_up=score_up, labels=labels, losses=losses)
        return out.unflatten(1, grid)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        score_up: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        losses: Losses | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first. These are kept, and lie in the first container only.
            grid: `(H, W)` of the others.
            prefix: Number of extra tokens.
            score_up: Scores of the scale before, `(B, h, w)`, which are max-pooled to the grid, or `(B, H * W)`: the
                larger score counts.
            labels: Which tokens matter, `(B, h, w)` of any size, 1 inside of objects: their loss is the cross-entropy
                of the scores, in place of that of `ratio`.
            losses: Where the loss goes; the open collector if None.
        """
        scores = self._scores(x, grid, prefix, score_up)
        if self.training:
            self._report(scores, grid, labels, losses)
        kept = F.pad(self._keep(scores), (prefix, 0), value=True)
        gates = F.pad(scores.sigmoid(), (prefix, 0), value=1.0)
        gated = self._rolled(x * gates.unsqueeze(2), grid, prefix, -1)
        kept = self._rolled(kept, grid, prefix, -1)
        return self._rolled(self._attend(gated, kept), grid, prefix, 1)

    def selection(self, x: torch.Tensor, score_up: torch.Tensor | None = None) -> Selection:
        """Scores of the tokens of a map `(B, H, W, C)`, which of them are kept, and in which container they lie."""
        grid = (x.shape[1], x.shape[2])
        scores = self._scores(x.flatten(1, 2), grid, 0, score_up)
        kept = scores.sigmoid() > self.threshold
        order = self._rolled(kept, grid, 0, -1)
        rank = order.flatten().cumsum(0).view_as(order) if self.packing == "batch" else order.cumsum(1)
        length = self._length(order)
        container = torch.where(order, (rank - 1).div(length, rounding_mode="floor"), -1)
        return Selection(scores, kept, self._rolled(container, grid, 0, 1))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`; 0 if it is not kept."""
        scores, kept, container = self.selection(x)
        tokens = x.flatten(1, 2) * scores.sigmoid().unsqueeze(2)
        q, k, _ = split_heads(self.qkv(tokens), self.num_heads)
        seen = ((container.unsqueeze(1) == container.unsqueeze(2)) & kept.unsqueeze(1)).unsqueeze(1)
        rows = (q @ k.mT * q.size(-1) ** -0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.where(kept[:, None, :, None], rows, 0.0)

    def _scores(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int, score_up: torch.Tensor | None
    ) -> torch.Tensor:
        scores = self.gate(x[:, prefix:]).squeeze(2)
        if score_up is None:
            return scores
        if score_up.ndim == 3:
            score_up = F.adaptive_max_pool2d(score_up.unsqueeze(1), grid).flatten(1)
        if score_up.shape != scores.shape:
            raise ValueError(
                f"score_up must be a map (B, h, w) or have shape {tuple(scores.shape)}, got {tuple(score_up.shape)}"
            )
        return torch.maximum(scores, score_up)

    def _keep(self, scores: torch.Tensor) -> torch.Tensor:
        if self.training and self.noise:
            uniform = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
            # The difference of two Gumbel numbers: of keeping and of not keeping.
            scores = scores + self.noise * uniform.logit()
        return scores.sigmoid() > self.threshold

    def _attend(self, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Attention among the kept tokens; 0 for the others."""
        batch, tokens, image = x.size(0), x.size(1), None
        if self.packing == "batch":
            image = torch.arange(batch, device=x.device).repeat_interleave(tokens).unsqueeze(0)
            x, kept = x.flatten(0, 1).unsqueeze(0), kept.flatten().unsqueeze(0)
        packing = pack_tokens(kept, self._length(kept))
        packed = x.gather(1, packing.token.unsqueeze(2).expand(-1, -1, x.size(2)))
        out = packed_attention(
            self.qkv(packed).unflatten(2, (3, self.num_heads, -1)),
            packing,
            image=None if image is None else image.gather(1, packing.token),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        out = self.proj_drop(self.proj(out))
        out = out.gather(1, packing.slot.unsqueeze(2).expand(-1, -1, out.size(2))) * kept.unsqueeze(2)
        return out.view(batch, tokens, -1)

    def _length(self, kept: torch.Tensor) -> int:
        """The number of slots of a container, at most the number of tokens."""
        return min(self.container, kept.numel() if self.packing == "batch" else kept.size(1))

    def _rolled(self, x: torch.Tensor, grid: tuple[int, int], prefix: int, sign: int) -> torch.Tensor:
        """Rolls the map of tokens `(B, prefix + H * W, ...)`."""
        if not any(self.shift):
            return x
        shift = (sign * self.shift[0], sign * self.shift[1])
        rolled = x[:, prefix:].unflatten(1, grid).roll(shift, (1, 2)).flatten(1, 2)
        return torch.cat([x[:, :prefix], rolled], 1) if prefix else rolled

    def _report(
        self, scores: torch.Tensor, grid: tuple[int, int], labels: torch.Tensor | None, losses: Losses | None
    ) -> None:
        """Reports the loss of the scores."""
        if labels is not None:
            target = F.adaptive_max_pool2d(labels.to(scores.dtype).unsqueeze(1), grid).flatten(1)
            loss = F.binary_cross_entropy_with_logits(scores, target)
        elif self.ratio is not None:
            loss = (scores.sigmoid().mean(1) - self.ratio).square().mean()
        else:
            return
        add_loss("selection", self.loss_weight * loss, losses)


def _mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
    """Swin's attention in the first two stages, select-and-pack attention from the third on."""
    if context.stage < 2:
        return get("mixer", "swin").build_mixers(context, **dd)
    return {"attn": CARD.build_in(context, **dd)}


CARD = Card(
    name="spa",
    title="SPA: Select and Pack Attention",
    kind="mixer",
    factory=SelectPackAttention,
    summary="attention among the tokens that a gate keeps, packed into containers of a fixed length",
    flow=(
        "(. | linear -> sigmoid) -> * -> kept tokens, in containers -> ((q | k) -> @ -> softmax | v) -> @ -> proj "
        "-> back to their places"
    ),
    paper="arXiv:2410.23608",
    placement="in place of window attention from the third stage on",
    avoid="where no position may be passed over: tokens that the gate drops get 0 and live on in the residual "
    "connection alone",
    pyramid=("nano", "micro"),
    keywords=lambda context: {"shift": 3 * (context.block // 2 % 2), "ratio": 0.3},
    mixers=_mixers,
    cases={
        "": {"num_heads": 3, "container": 16},
        "shifted": {"num_heads": 3, "container": 16, "shift": 2, "ratio": 0.3},
    },
    floor=WINDOWS,
    cost="N w",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="spa",
)

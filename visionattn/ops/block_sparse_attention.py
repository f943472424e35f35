"""Block-sparse attention: blocks of tokens, which are windows or listed, see themselves or the blocks of a table."""

from dataclasses import dataclass

import torch

from ._dispatch import has_kernel
from .attention import softmax_attention
from .window_attention import WIDEST, merge_windows, padded_size, partition_windows

__all__ = ["Windows", "block_sparse_attention"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """The windows of a map, row by row, as blocks of its tokens; slots beyond the map are empty.

    Args:
        size: Height and width of the map.
        window: Height and width of a window.
        shift: How far down and to the right the windows lie from where they would otherwise: the map is rolled, and
            tokens that only rolling brought together do not see each other. Less than `window`.
    """

    size: Pair
    window: Pair
    shift: Pair = (0, 0)

    def tokens(self, device: torch.device | None = None) -> torch.Tensor:
        """The token in each slot, and their number for an empty one. `(windows, n)`."""
        height, width = self.size
        number = torch.arange(1, height * width + 1, device=device).view(1, height, width, 1)
        number = partition_windows(number, self.window, self.shift).squeeze(-1) - 1
        return number.masked_fill(number < 0, height * width)

    def parts(self, device: torch.device | None = None) -> torch.Tensor:
        """Which part of its window each slot belongs to: those of one part see each other. `(windows, n)`."""
        height, width = padded_size(self.size, self.window)
        rows = torch.arange(height, device=device) < self.shift[0]
        columns = torch.arange(width, device=device) < self.shift[1]
        part = 2 * rows.unsqueeze(1) + 1 * columns
        return partition_windows(part.view(1, height, width, 1), self.window, self.shift).squeeze(-1)


def refuses_rows(qkv: torch.Tensor) -> str:
    """Why kernels cannot take these queries, keys and values, or ""."""
    if qkv.size(-1) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if qkv.stride(-1) != 1:
        return "the numbers of a head do not lie side by side"
    return ""


def _refuses(qkv: torch.Tensor, blocks: Windows | torch.Tensor, *, dropout_p: float = 0.0, **settings: object) -> str:
    return "attention weights are dropped" if dropout_p > 0 else refuses_rows(qkv)


@has_kernel("block_sparse", _refuses)
def block_sparse_attention(
    qkv: torch.Tensor,
    blocks: Windows | torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    overlap: int = 0,
    bias: torch.Tensor | None = None,
    pad_kv: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Softmax attention of each block's queries to the keys of some blocks. `(B, N, 3, heads, d) -> (B, N, heads, d)`.

    A query must see a key at least.

    Args:
        qkv: Queries, keys and values as one projection leaves them, of the tokens of a map row by row.
        blocks: Which tokens belong together: windows, or the tokens of each block, `(B, heads, blocks, n)` or with 1 in
            place of B or heads. Every token has one slot. Slots with numbers from N up are empty.
        block_table: The blocks that the queries of each block see, `(B, blocks, K)`; without it, their own. Not for
            shifted windows.
        overlap: Blocks 2j and 2j + 1 of tokens are siblings: the first sees the first `overlap` slots of the second
            too, the second the last ones of the first before its own. At most n, and not with `block_table`.
        bias: Added to the scores, `(heads, n, keys)`, keys in the order that they are seen in: slot by slot, block by
            block.
        pad_kv: Key and value that every empty slot of a window has, `(2, heads, d)`; without it they are not seen.
        scale: Factor of the scores, `d ** -0.5` if None.
        dropout_p: Probability of dropping an attention weight.

    Raises:
        ValueError: If an argument has another shape, or arguments do not go together.
    """
    check_arguments(qkv, blocks, block_table, overlap, bias, pad_kv)
    mask = _visible(qkv, blocks, block_table, overlap, pad_kv is not None)
    if bias is not None:
        bias = bias.to(qkv.dtype)[:, None]
        mask = bias[None] if mask is None else torch.where(mask, bias, float("-inf"))
    q, k, v = _regroup(qkv, blocks, pad_kv).unbind(0)
    k, v = (_keys(x, block_table, overlap) for x in (k, v))
    if isinstance(blocks, Windows):
        # Windows lie side by side in an image, and heads in a token: blocks take the place of images.
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        if mask is not None:
            mask = mask.expand(len(qkv) if mask.size(2) > 1 else 1, -1, -1, -1, -1).transpose(1, 2).flatten(0, 1)
    else:
        # Blocks take the place of heads, so that nothing is copied.
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        if mask is not None:
            mask = mask.expand(*qkv.shape[::3], -1, -1, -1).flatten(0, 1)
    out = softmax_attention(q, k, v, mask=mask, scale=scale, dropout_p=dropout_p)
    return _put_back(out, qkv, blocks)


def check_arguments(
    qkv: torch.Tensor,
    blocks: Windows | torch.Tensor,
    block_table: torch.Tensor | None,
    overlap: int,
    bias: torch.Tensor | None,
    pad_kv: torch.Tensor | None,
) -> None:
    """Raises what `block_sparse_attention` says."""
    if qkv.ndim != 5 or qkv.size(2) != 3:
        raise ValueError(f"qkv must have shape (B, N, 3, heads, d), got {tuple(qkv.shape)}")
    batch, tokens, _, heads, dim = qkv.shape
    if isinstance(blocks, Windows):
        height, width = blocks.size
        if height * width != tokens:
            raise ValueError(f"blocks are windows of a map of {height} x {width}, but qkv has {tokens} tokens")
        if not all(0 <= by < side for by, side in zip(blocks.shift, blocks.window, strict=True)):
            raise ValueError(f"shift must be at least 0 and less than the window, got {blocks.shift}")
        slots, paired = blocks.window[0] * blocks.window[1], False
    else:
        if blocks.ndim != 4 or blocks.size(0) not in (1, batch) or blocks.size(1) not in (1, heads):
            raise ValueError(f"blocks must have shape ({batch}, {heads}, blocks, n), got {tuple(blocks.shape)}")
        slots, paired = blocks.size(3), blocks.size(2) % 2 == 0
    if block_table is not None and (overlap or (isinstance(blocks, Windows) and any(blocks.shift))):
        raise ValueError("block_table goes neither with overlap nor with shifted windows")
    if overlap and (not paired or not 0 < overlap <= slots):
        raise ValueError(f"overlap must be at most {slots}, for an even number of blocks of tokens, got {overlap}")
    if pad_kv is not None and (not isinstance(blocks, Windows) or pad_kv.shape != (2, heads, dim)):
        raise ValueError(f"pad_kv must have shape (2, {heads}, {dim}), for windows, got {tuple(pad_kv.shape)}")
    keys = slots + overlap if block_table is None else slots * block_table.size(2)
    if bias is not None and bias.shape != (heads, slots, keys):
        raise ValueError(f"bias must have shape ({heads}, {slots}, {keys}), got {tuple(bias.shape)}")


def _regroup(qkv: torch.Tensor, blocks: Windows | torch.Tensor, pad_kv: torch.Tensor | None) -> torch.Tensor:
    """Rows of queries, keys and values, slot by slot. `(B, N, 3, heads, d) -> (3, B, heads, blocks, n, d)`."""
    batch, tokens, _, heads, dim = qkv.shape
    if isinstance(blocks, Windows):
        rows = partition_windows(qkv.flatten(2).unflatten(1, blocks.size), blocks.window, blocks.shift)
        rows = rows.unflatten(0, (batch, -1)).unflatten(-1, (3, heads, dim))
        if pad_kv is not None:
            empty = blocks.tokens(qkv.device) == tokens
            padded = torch.cat((torch.zeros_like(pad_kv[:1]), pad_kv)).to(rows.dtype)
            rows = torch.where(empty[..., None, None, None], padded, rows)
        return rows.permute(3, 0, 4, 1, 2, 5)
    image, part = (torch.arange(count, device=qkv.device).view(-1, 1, 1, 1) for count in (batch, 3))
    head = torch.arange(heads, device=qkv.device).view(-1, 1, 1)
    row = (image * tokens + blocks.clamp_max(tokens - 1)) * (3 * heads) + head
    rows = row + heads * part.unsqueeze(1)
    return qkv.reshape(-1, dim).index_select(0, rows.flatten()).view(*rows.shape, dim)


def _visible(
    qkv: torch.Tensor, blocks: Windows | torch.Tensor, block_table: torch.Tensor | None, overlap: int, padded: bool
) -> torch.Tensor | None:
    """Which keys each query sees, as broadcasts to `(B, heads, blocks, n, keys)`; None: all."""
    tokens = qkv.size(1)
    table = blocks.tokens(qkv.device)[None, None] if isinstance(blocks, Windows) else blocks
    mask = None
    if table.size(2) * table.size(3) > tokens and not padded:
        held = (table < tokens).unsqueeze(-1)
        seen = held if block_table is None else held.expand(qkv.size(0), -1, -1, -1, -1)
        # What the queries of empty slots see does not matter, but they must see something.
        mask = _keys(seen, block_table, overlap).mT | ~held
    if isinstance(blocks, Windows) and any(blocks.shift):
        part = blocks.parts(qkv.device)[None, None]
        same = part.unsqueeze(-1) == part.unsqueeze(-2)
        mask = same if mask is None else mask & (same | ~held)
    return mask


def _keys(x: torch.Tensor, block_table: torch.Tensor | None, overlap: int) -> torch.Tensor:
    """What each block sees. `(B, heads, blocks, n, d) -> (B, heads, blocks, keys, d)`."""
    if overlap:
        length = x.size(3) + overlap
        both = x.unflatten(2, (-1, 2)).flatten(3, 4)
        return torch.stack((both[..., :length, :], both[..., -length:, :]), dim=3).flatten(2, 3)
    if block_table is None:
        return x
    batch, blocks = x.size(0), x.size(2)
    seen = block_table + blocks * torch.arange(batch, device=x.device).view(-1, 1, 1)
    x = x.transpose(1, 2).flatten(0, 1).index_select(0, seen.flatten())
    return x.unflatten(0, block_table.shape).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)


def _put_back(out: torch.Tensor, qkv: torch.Tensor, blocks: Windows | torch.Tensor) -> torch.Tensor:
    """`(B * windows, heads, n, d)` or `(B * heads, blocks, n, d)` to `(B, N, heads, d)`."""
    batch, tokens, _, heads, dim = qkv.shape
    # As PyTorch's fused forms leave it.
    out = out.transpose(1, 2)
    if isinstance(blocks, Windows):
        out = merge_windows(out.flatten(2), blocks.size, blocks.window, blocks.shift)
        return out.flatten(1, 2).unflatten(-1, (heads, dim))
    rows = torch.arange(out.numel() // dim, device=out.device).view(batch, heads, *out.shape[1:3]).transpose(2, 3)
    # An empty slot's number may be any from N up; all of them land beside the tokens.
    token = blocks.clamp_max(tokens).expand(batch, heads, -1, -1).flatten(2)
    row = rows.new_zeros(batch, heads, tokens + 1).scatter(2, token, rows.flatten(2))[..., :tokens]
    return out.reshape(-1, dim).index_select(0, row.transpose(1, 2).flatten()).view(batch, tokens, heads, dim)

"""Block-sparse attention on GPUs, and the operations that are a case of it."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch.nn import functional as F

from visionattn.ops._autocast import autocast_dtype
from visionattn.ops.block_sparse_attention import Windows, check_arguments
from visionattn.ops.block_sparse_attention import block_sparse_attention as torch_code
from visionattn.ops.cluster_attention import siblings
from visionattn.ops.eager.routed_attention import local_values
from visionattn.ops.stripe_attention import convolve_stripes, stripe_sides
from visionattn.ops.window_attention import WIDEST, Layer

from . import _block_sparse_kernels as kernels
from ._register import formula_gradients, power_of_2, register, wrap_triton

__all__ = [
    "block_sparse_attention",
    "cluster_attention",
    "place_of",
    "routed_attention",
    "stripe_attention",
    "tiles_of",
    "window_attention",
]

Pair = tuple[int, int]
Tensors3 = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# That add up the gradient of the bias: enough for any GPU, and few enough to add up what each has found.
PROGRAMS = 1024
# The longest side of a tile and its warps, by the bytes of a number and the width of a head, up to which it holds: the
# largest that the registers of all generations of GPUs hold.
TILES = {(2, 64): (64, 4), (2, 128): (32, 4), (4, 32): (32, 8), (4, 128): (16, 8)}


def block_sparse_attention(qkv: torch.Tensor, blocks: Windows | torch.Tensor, **settings: Any) -> torch.Tensor:
    """As `visionattn.ops.block_sparse_attention`."""
    return _attention(qkv, blocks, **settings)[0]


def window_attention(
    x: torch.Tensor,
    qkv: Layer,
    proj: Layer,
    *,
    num_heads: int,
    window: Pair,
    shift: Pair = (0, 0),
    bias: torch.Tensor | None = None,
    mask_padding: bool = False,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """As `visionattn.ops.window_attention`, but the map is projected as it stands and never cut."""
    size = (x.size(1), x.size(2))
    rows = (x if qkv is None else qkv(x)).flatten(1, 2).unflatten(-1, (3, num_heads, -1))
    pad_kv = None
    if not mask_padding and any(length % side for length, side in zip(size, window, strict=True)):
        pad = x.new_zeros(1, x.size(3))
        pad_kv = (pad if qkv is None else qkv(pad)).view(3, num_heads, -1)[1:]
    out = block_sparse_attention(rows, Windows(size, window, shift), bias=bias, pad_kv=pad_kv)
    out = out.flatten(2).unflatten(1, size)
    return out if proj is None else proj(out)


def cluster_attention(
    qkv: torch.Tensor,
    order: torch.Tensor,
    *,
    overlap: int = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    pair_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `visionattn.ops.cluster_attention`."""
    rows, order, overlap = siblings(qkv, order, overlap, pair_images)
    out, values = _attention(rows, order, overlap=overlap, scale=scale, values=True)
    shape = qkv[:, :, 0].shape
    return out.view(shape), values.view(shape)


def routed_attention(
    qkv: torch.Tensor,
    table: torch.Tensor,
    *,
    num_heads: int,
    region: Pair,
    scale: float,
    convolution: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """As `visionattn.ops.routed_attention`; nothing is cut out of the map or picked."""
    size = (qkv.size(1), qkv.size(2))
    rows = qkv.flatten(1, 2).unflatten(2, (3, num_heads, -1))
    out = block_sparse_attention(rows, Windows(size, region), block_table=table, scale=scale)
    out = out.flatten(2).unflatten(1, size)
    local = local_values(qkv, *(convolution or (None, None)))
    return out if local is None else out + local


def stripe_attention(
    qkv: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    num_heads: int,
    stripe: tuple[int | None, int | None],
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """As `visionattn.ops.stripe_attention`; only the values are cut, for the convolution.

    They come from the attention, which adds their gradient to its own: autograd would pad it to all of `qkv` first.
    """
    size, sides = (qkv.size(1), qkv.size(2)), stripe_sides(qkv, stripe)
    rows = qkv.flatten(1, 2).unflatten(-1, (num_heads, -1))
    out, values = (
        x.flatten(2).unflatten(1, size) for x in _attention(rows, Windows(size, sides), scale=scale, values=True)
    )
    return out + convolve_stripes(values, weight, bias, sides)


def _attention(
    qkv: torch.Tensor,
    blocks: Windows | torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    overlap: int = 0,
    bias: torch.Tensor | None = None,
    pad_kv: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    values: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The results and, if wanted, the values as they came in, in memory of their own."""
    check_arguments(qkv, blocks, block_table, overlap, bias, pad_kv)
    qkv = qkv.to(autocast_dtype(qkv) or qkv.dtype)  # as PyTorch's attention does
    pad_kv = None if pad_kv is None else pad_kv.to(qkv.dtype)
    if qkv.size(-1) > WIDEST:
        raise ValueError(f"heads are at most {WIDEST} wide in kernels, got {qkv.size(-1)}")
    table = None if isinstance(blocks, Windows) else blocks
    windows = [*blocks.size, *blocks.window, *blocks.shift] if isinstance(blocks, Windows) else []
    scale = qkv.size(-1) ** -0.5 if scale is None else scale
    out, _, of_values = block_sparse_forward(qkv, table, block_table, bias, pad_kv, windows, overlap, scale, values)
    return out, of_values


def _like_forward(qkv: torch.Tensor, *others: Any) -> Tensors3:
    *_, values = others
    batch, tokens, _, heads, dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, dim)
    return (
        out,
        out.new_empty(2, batch, heads, tokens, dtype=torch.float32),
        torch.empty_like(out) if values else out.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensors3) -> None:
    qkv, table, block_table, bias, pad_kv, *ctx.settings, ctx.values = inputs
    ctx.save_for_backward(qkv, table, block_table, bias, pad_kv, *output[:2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor | None, _: None, grad_values: torch.Tensor | None) -> tuple[Any, ...]:
    qkv, table, block_table, bias, pad_kv, out, sums = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(out)
    if torch.is_grad_enabled():
        return _differentiable_backward(ctx, grad, grad_values)
    grad_values = grad_values if ctx.values else None
    d_qkv, d_bias, d_pad_kv = block_sparse_backward(
        qkv, table, block_table, bias, pad_kv, out, sums, grad, grad_values, *ctx.settings, ctx.needs_input_grad[3]
    )
    d_bias = d_bias if ctx.needs_input_grad[3] else None
    return d_qkv, None, None, d_bias, d_pad_kv if pad_kv is not None else None, None, None, None, None


def _differentiable_backward(ctx: Any, grad: torch.Tensor, grad_values: torch.Tensor | None) -> tuple[Any, ...]:
    """The gradients of the torch code."""
    qkv, table, block_table, bias, pad_kv, *_ = ctx.saved_tensors
    windows, overlap, scale = ctx.settings
    blocks = Windows(tuple(windows[:2]), tuple(windows[2:4]), tuple(windows[4:])) if table is None else table
    settings = {"block_table": block_table, "overlap": overlap, "scale": scale, "backend": "torch"}

    def formula(qkv: torch.Tensor, bias: torch.Tensor | None, pad_kv: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return torch_code(qkv, blocks, bias=bias, pad_kv=pad_kv, **settings), qkv[:, :, 2]

    grads = grad, torch.zeros_like(grad) if grad_values is None or not ctx.values else grad_values
    d_qkv, d_bias, d_pad_kv = formula_gradients(formula, (qkv, bias, pad_kv), grads)
    return d_qkv, None, None, d_bias, d_pad_kv, None, None, None, None


@register(_like_forward, _setup, _backward)
def block_sparse_forward(
    qkv: torch.Tensor,
    table: torch.Tensor | None,
    block_table: torch.Tensor | None,
    bias: torch.Tensor | None,
    pad_kv: torch.Tensor | None,
    windows: Sequence[int],
    overlap: int,
    scale: float,
    values: bool,
) -> Tensors3:
    batch, tokens, _, heads, dim = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, dim)
    sums = qkv.new_empty(2, batch, heads, tokens, dtype=torch.float32)
    table, block_table, pad_kv = _dense(table, block_table, pad_kv)
    place = place_of(qkv[:, :, 0], qkv[:, :, 1], table, block_table, windows, overlap)
    tiles = tiles_of(place, qkv.element_size())
    bias = _padded(bias, tiles)
    grid = (batch * place["blocks"] * triton.cdiv(place["slots"], tiles["BLOCK_M"]) * heads,)
    wrap_triton(kernels.attend)[grid](
        *qkv.unbind(2), table, block_table, bias, pad_kv, None, out, *sums.unbind(), scale, **place, **tiles
    )
    return out, sums, qkv[:, :, 2].clone(memory_format=torch.contiguous_format) if values else out.new_empty(0)


def _like_backward(
    qkv: torch.Tensor,
    table: torch.Tensor | None,
    block_table: torch.Tensor | None,
    bias: torch.Tensor | None,
    pad_kv: torch.Tensor | None,
    *others: Any,
) -> Tensors3:
    *_, with_bias = others
    d_bias = bias.new_empty(bias.shape) if with_bias and bias is not None else qkv.new_empty(0)
    return qkv.new_empty(qkv.shape), d_bias, qkv.new_empty(0) if pad_kv is None else pad_kv.new_empty(pad_kv.shape)


@register(_like_backward)
def block_sparse_backward(
    qkv: torch.Tensor,
    table: torch.Tensor | None,
    block_table: torch.Tensor | None,
    bias: torch.Tensor | None,
    pad_kv: torch.Tensor | None,
    out: torch.Tensor,
    sums: torch.Tensor,
    grad: torch.Tensor,
    grad_values: torch.Tensor | None,
    windows: Sequence[int],
    overlap: int,
    scale: float,
    with_bias: bool,
) -> Tensors3:
    batch, heads = qkv.size(0), qkv.size(3)
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    table, block_table, pad_kv, grad_values = _dense(table, block_table, pad_kv, grad_values)
    place = place_of(qkv[:, :, 0], qkv[:, :, 1], table, block_table, windows, overlap)
    place |= dict(zip(("grad_by_image", "grad_by_token", "grad_by_head"), grad.stride()[:3], strict=True))
    tiles = tiles_of(place, qkv.element_size())
    padded = _padded(bias, tiles)
    slots, keys, units = place["slots"], place["keys"], batch * place["blocks"]
    down = triton.cdiv(slots, tiles["BLOCK_M"])
    alone = keys == slots and block_table is None and down == 1
    d_qkv = qkv.new_empty(qkv.shape)
    deltas = None if alone and not with_bias else torch.empty_like(sums[0])
    if not alone:
        wrap_triton(kernels.grad_queries)[(units * down * heads,)](
            *qkv.unbind(2),
            table,
            block_table,
            padded,
            pad_kv,
            None,
            out,
            *sums.unbind(),
            grad,
            deltas,
            d_qkv,
            None,
            scale,
            **place,
            **tiles,
        )
    seers, starts = (None, None) if block_table is None else _inverse(block_table, place["blocks"])
    pads = None if pad_kv is None else sums.new_empty(units, down, *pad_kv.shape)
    of_slots = {name: value for name, value in tiles.items() if name != "BLOCK_N"}
    wrap_triton(kernels.grad_keys)[(units * down * heads,)](
        *qkv.unbind(2), table, seers, starts, padded, pad_kv, None, *sums.unbind(), grad, deltas, grad_values,
        d_qkv, pads, scale, ALONE=alone, **place, **of_slots,
    )  # fmt: skip
    d_bias, d_pad_kv = qkv.new_empty(0), qkv.new_empty(0)
    if with_bias:
        assert bias is not None and padded is not None
        of_bias = _tiles_of_bias(tiles, qkv.element_size())
        across = triton.cdiv(keys, of_bias["BLOCK_N"])
        per_program = triton.cdiv(units, max(1, PROGRAMS // (heads * down * across)))
        partial = sums.new_empty(triton.cdiv(units, per_program), *padded.shape)
        wrap_triton(kernels.grad_bias)[(partial.size(0) * down * across * heads,)](
            *qkv.unbind(2), table, block_table, padded, pad_kv, *sums.unbind(), grad, deltas, partial, scale,
            units=units, per_program=per_program, **place, **of_bias,
        )  # fmt: skip
        d_bias = partial.sum(0)[:, :slots, :keys].to(bias.dtype, memory_format=torch.contiguous_format)
    if pad_kv is not None and pads is not None:
        d_pad_kv = pads.sum((0, 1)).to(pad_kv.dtype)
    return d_qkv, d_bias, d_pad_kv


def _dense(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _padded(bias: torch.Tensor | None, tiles: dict[str, int]) -> torch.Tensor | None:
    """The bias of whole tiles: read in wide loads, without asking where it ends."""
    if bias is None:
        return None
    return F.pad(bias, (0, -bias.size(2) % tiles["PAD"], 0, -bias.size(1) % tiles["PAD"])).contiguous()


def place_of(
    q: torch.Tensor,
    k: torch.Tensor,
    table: torch.Tensor | None,
    block_table: torch.Tensor | None,
    windows: Sequence[int],
    overlap: int = 0,
    halo: int = 0,
    span: int = 0,
) -> dict[str, Any]:
    """What all kernels are told of where things are; values lie as keys do."""
    _, tokens, heads, dim = q.shape
    if table is None:
        height, width, tall, wide, down, right = windows
        blocks, slots = triton.cdiv(height, tall) * triton.cdiv(width, wide), tall * wide
        by_image = by_head = 0
    else:
        height = width = tall = wide = down = right = 0
        blocks, slots = table.size(2), table.size(3)
        by_image, by_head = (table.stride(axis) if table.size(axis) > 1 else 0 for axis in (0, 1))
    chosen = 0 if block_table is None else block_table.size(2)
    keys = slots * chosen if chosen else (tall + 2 * halo) * (wide + 2 * halo) if halo else slots + overlap
    terms = tall + wide + 4 * halo if span else 0
    return {
        "tokens": tokens,
        "heads": heads,
        "blocks": blocks,
        "slots": slots,
        "keys": keys,
        "height": height,
        "width": width,
        **dict(zip(("q_by_image", "q_by_token", "q_by_head"), q.stride()[:3], strict=True)),
        **dict(zip(("by_image", "by_token", "by_head"), k.stride()[:3], strict=True)),
        "table_by_image": by_image,
        "table_by_head": by_head,
        "SLOTS": _next_16(slots),
        "KEYS": _next_16(keys),
        "OVERLAP": overlap,
        "CHOSEN": chosen,
        "TALL": tall,
        "WIDE": wide,
        "DOWN": down,
        "RIGHT": right,
        "HALO": halo,
        "WIDTH": dim,
        "SPAN": span,
        "TERMS": terms,
        "BLOCK_T": max(16, power_of_2(terms, 1024)),
        "PRECISION": _precision(q.dtype),
    }


def _next_16(count: int) -> int:
    """The next multiple of 16, as a number that compilers know."""
    size = 16
    while size < count:
        size += 16
    return size


def _precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as matrices are on this GPU, exactly unless the user allowed TF32."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def tiles_of(place: dict[str, Any], element_size: int) -> dict[str, int]:
    """The sizes of tiles, and the warps that work on one."""
    slots, keys, width = place["SLOTS"], place["KEYS"], max(16, power_of_2(place["WIDTH"], WIDEST))
    longest, warps = next(found for bounds, found in TILES.items() if element_size == bounds[0] and width <= bounds[1])
    if slots > longest and element_size == 2:
        warps = 8  # loops over queries carry sums
    down, across = (power_of_2(count, longest) for count in (slots, keys))
    # 69 keys are three tiles of 32 rather than two of 64.
    if across == 64 and triton.cdiv(keys, 32) % 2:
        across = 32
    return {
        "BLOCK_M": down,
        "BLOCK_N": across,
        "BLOCK_D": width,
        "PAD": max(down, across),
        # A thread loads 16 bytes at once.
        "num_warps": max(1, min(warps, down * width * element_size // 512)),
        # Programs are many and loops are short: while one waits for memory, others work.
        "num_stages": 1,
    }


def _tiles_of_bias(tiles: dict[str, int], element_size: int) -> dict[str, int]:
    """The same for the gradient of the bias, which a program carries with itself: it leaves less room for keys."""
    if element_size > 2:
        return tiles
    return {**tiles, "BLOCK_N": min(tiles["BLOCK_N"], max(16, 1024 // tiles["BLOCK_D"]))}


def _inverse(block_table: torch.Tensor, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Who sees each block. `(B, blocks, K) -> (B, blocks * K), (B, blocks + 1)`.

    The first lists `K * seer + place`, by the block that is seen, the second says where the list of each begins.
    """
    seen, seers = block_table.flatten(1).sort(dim=1, stable=True)
    number = torch.arange(blocks + 1, device=block_table.device, dtype=seen.dtype).expand(block_table.size(0), -1)
    return seers, torch.searchsorted(seen, number.contiguous())

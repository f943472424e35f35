"""DoPE: removes rotary embeddings from noisy heads of a trained network, without training (arXiv 2511.09146).

Official code: none. The paper is about language; two axes are ours. Bands are the pairs of features that turn at one
speed. Rotary tables are timm's: `(..., N, 2 d)`, the sines of all features and then the cosines.

Differs from the official code in: not known. The paper's text and figure differ on `parts`: here the rotation of the
low bands goes, as in the figure, and not their features.

Golden: tests/golden/dope_*.npz, of an independent implementation of the same formulas.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import pi
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import nn
from torch.nn import functional as F

from visionattn.utils.arguments import check_choice, check_positive

from ._evaluation import evaluating

__all__ = ["axial_rope", "denoise_rope", "low_bands", "rope_band_entropy", "rope_truncated_rank", "unrotate"]


def axial_rope(grid: tuple[int, int], dim: int, *, base: float = 100.0) -> torch.Tensor:
    """A table of angles for two axes, `(H * W, 2 * dim)`: half of the bands rotate with the row, half with the column.

    Args:
        grid: `(H, W)`.
        dim: Width of a head, a multiple of 4.
        base: Band i of an axis turns by `base ** (-i / (dim / 4))` a position.

    Raises:
        ValueError: If `dim` is no multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"dim must be a multiple of 4, got {dim}")
    speeds = float(base) ** (-torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = torch.cat([place.flatten().unsqueeze(1) * speeds for place in (rows, columns)], 1)
    angles = angles.repeat_interleave(2, 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def rope_band_entropy(k: torch.Tensor, *, half: bool = False) -> torch.Tensor:
    """Entropy of each band of each head, 0 to log 2: how evenly its two features share what the keys have.

    Its exponential is the band's effective rank, 1 to 2.

    Args:
        k: Rotated keys (or queries), `(B, heads, N, d)`.
        half: Whether the features of a band are `d / 2` apart, as in some of timm's networks, and not neighbours.

    Returns:
        `(B, heads, d / 2)`.
    """
    bands = torch.stack(k.chunk(2, -1), -1) if half else k.unflatten(-1, (-1, 2))
    bands = bands.transpose(2, 3).double()
    return _entropy(torch.linalg.eigvalsh(bands.mT @ bands)).to(k.dtype)


def rope_truncated_rank(k: torch.Tensor, r: int) -> torch.Tensor:
    """Effective rank of each head: the exponential of the entropy of its Gram matrix' `r` largest eigenvalues.

    Args:
        k: Rotated keys (or queries), `(B, heads, N, d)`.
        r: Number of eigenvalues, at most d; with 1 everything is 1.

    Returns:
        `(B, heads)`.

    Raises:
        ValueError: If there are not as many eigenvalues.
    """
    if not 1 <= r <= k.shape[-1]:
        raise ValueError(f"r must be in 1 to {k.shape[-1]}, the width of a head, got {r}")
    wide = k.double()
    return _entropy(torch.linalg.eigvalsh(wide.mT @ wide)[..., -r:]).exp().to(k.dtype)


def low_bands(rope: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Which features rotate by less than one turn over a grid, on both axes, `(..., d)`.

    Args:
        rope: The table of that grid, `(..., H * W, 2 * d)`. Bands must turn by less than half a turn a position.
        grid: `(H, W)`.

    Raises:
        ValueError: If the table is of another grid.
    """
    if rope.shape[-2] != grid[0] * grid[1]:
        raise ValueError(f"rope must have {grid[0]} x {grid[1]} rows, got {rope.shape[-2]}")
    sin, cos = rope.double().unflatten(-2, grid).chunk(2, -1)
    angles = torch.atan2(sin, cos)
    low = torch.ones_like(angles[..., 0, 0, :], dtype=torch.bool)
    for axis, side in ((-3, grid[0]), (-2, grid[1])):
        if side > 1:
            turn = angles.select(axis, 1) - angles.select(axis, 0)
            turn = torch.atan2(turn.sin(), turn.cos()).select(-2, 0)
            low = low & (turn.abs() < 2 * pi / side)
    return low


def unrotate(rope: torch.Tensor, heads: torch.Tensor, bands: torch.Tensor | None = None) -> torch.Tensor:
    """A table for each head, without rotation where asked. `(N, 2 * d)` or `(heads, N, 2 * d)` -> `(heads, N, 2 * d)`.

    Args:
        rope: The table.
        heads: Which heads, booleans `(heads,)`.
        bands: Which features, booleans `(d,)` or `(heads, d)`; all if none.
    """
    sin, cos = rope.chunk(2, -1)
    gone = heads.view(-1, 1, 1) & (torch.ones_like(sin, dtype=torch.bool) if bands is None else bands.unsqueeze(-2))
    return torch.cat([sin.masked_fill(gone, 0.0), cos.masked_fill(gone, 1.0)], -1)


@contextmanager
def denoise_rope(
    model: nn.Module,
    loader: Iterable[Any] | None,
    *,
    heads: int | Sequence[Sequence[int]] = 3,
    mode: str = "parts",
    r: int = 32,
    order: str = "lowest",
    of: str = "keys",
    train_grid: tuple[int, int] | None = None,
) -> Iterator[list[list[int]]]:
    """Takes the rotation of some heads out of one of timm's networks with rotary embeddings, inside a `with` block.

    Weights and state dict stay as they are. Heads are chosen by their truncated rank, one set for each layer, from
    what the network makes of some pictures.

    Args:
        model: A network of timm's with rotary embeddings (EVA-02, ViT with RoPE, DINOv3 and the like).
        loader: Batches of pictures, or tuples that begin with them; none is needed if `heads` names them.
        heads: How many heads of a layer, or which, for each layer.
        mode: `parts`: bands that turn less than once over `train_grid` do not turn; `all`: no bands do; `gaussian`:
            queries and keys of patches are noise, of the variance that the bands have which `parts` keeps.
        r: Eigenvalues that the rank counts, or all where a head has fewer.
        order: Whether heads of the `lowest` or the `highest` rank are chosen; ties by their number.
        of: Whether the rank is of rotated `keys` or `queries`.
        train_grid: Height and width in patches that the network was trained at; by default as `pretrained_cfg` says.

    Yields:
        The heads chosen in each layer.

    Raises:
        ValueError: If the network has no rotary embeddings, or an argument is unknown or does not fit.
    """
    check_choice("mode", mode, ("parts", "all", "gaussian"))
    check_choice("order", order, ("lowest", "highest"))
    check_choice("of", of, ("keys", "queries"))
    check_positive(r=r)
    network: Any = model
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (AttentionRope, EvaAttention))]
    if not layers or getattr(network, "rope", None) is None:
        raise ValueError(f"{type(model).__name__} has no rotary embeddings of timm's")
    if any(getattr(layer, "num_kv_heads", layer.num_heads) != layer.num_heads for layer in layers):
        raise ValueError("keys that several heads share cannot be turned for one of them")
    chosen = _chosen(model, layers, loader, heads, r, order, of)
    bands: Sequence[torch.Tensor | None]
    bands = [None] * len(layers) if mode == "all" else _low_of(network, len(layers), train_grid)
    handles = []
    for layer, numbers, low in zip(layers, chosen, bands, strict=True):
        mask = torch.zeros(layer.num_heads, dtype=torch.bool, device=layer.proj.weight.device)
        mask[numbers] = True
        unturned = None if mode == "gaussian" else low
        handles.append(layer.register_forward_pre_hook(partial(_unrotated, mask, unturned), with_kwargs=True))
        if mode == "gaussian" and low is not None:
            for seed, norm in enumerate((layer.q_norm, layer.k_norm)):
                half = bool(getattr(layer, "rotate_half", False))
                noisy = partial(_noisy, mask, low, layer.num_prefix_tokens, seed, half)
                handles.append(norm.register_forward_hook(noisy))
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


def _entropy(values: torch.Tensor) -> torch.Tensor:
    values = values.clamp(min=0)
    shares = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return -torch.xlogy(shares, shares).sum(-1)


def _unrotated(heads: torch.Tensor, bands: torch.Tensor | None, layer: nn.Module, args: Any, kwargs: Any) -> Any:
    if kwargs.get("rope") is None:
        raise ValueError(f"{type(layer).__name__} was called without rotary embeddings")
    return args, {**kwargs, "rope": unrotate(kwargs["rope"], heads, bands)}


def _noisy(
    heads: torch.Tensor, low: torch.Tensor, prefix: int, seed: int, half: bool, _: nn.Module, args: Any, x: torch.Tensor
) -> torch.Tensor:
    """Replaces the patches' queries or keys of some heads by noise, identical at each call."""
    patches = x[:, :, prefix:]
    kept = (~low).expand(x.shape[1], -1).unsqueeze(1).to(x.dtype)
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, torch.ones_like(kept))  # no band is left to measure
    variance = (patches.square() * kept).sum((-2, -1)) / (kept.sum((-2, -1)) * patches.shape[2])
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(patches.shape[1:], generator=generator).to(x)
    noise = noise * variance.sqrt()[..., None, None]
    return torch.cat([x[:, :, :prefix], torch.where(heads.view(-1, 1, 1), noise, patches)], 2)


def _chosen(
    model: nn.Module,
    layers: list[Any],
    loader: Iterable[Any] | None,
    heads: int | Sequence[Sequence[int]],
    r: int,
    order: str,
    of: str,
) -> list[list[int]]:
    if not isinstance(heads, int):
        named = [sorted({*numbers}) for numbers in heads]
        if len(named) != len(layers):
            raise ValueError(f"heads must name those of each of {len(layers)} layers, got {len(named)}")
        for numbers, layer in zip(named, layers, strict=True):
            if not {*numbers} <= {*range(layer.num_heads)}:
                raise ValueError(f"heads must be of 0 to {layer.num_heads - 1}, got {numbers}")
        return named
    fewest = min(layer.num_heads for layer in layers)
    if not 0 <= heads <= fewest:
        raise ValueError(f"heads must be in 0 to {fewest}, the heads of a layer, got {heads}")
    if loader is None:
        raise ValueError("loader must give pictures to choose heads by; or name them in heads")
    sums = _ranks(model, layers, loader, r, of)
    sign = 1 if order == "lowest" else -1
    return [sorted((sign * total).argsort(stable=True)[:heads].tolist()) for total in sums]


@torch.no_grad()
def _ranks(model: nn.Module, layers: list[Any], loader: Iterable[Any], r: int, of: str) -> list[torch.Tensor]:
    """The sum of each head's rank over the pictures, by layer."""
    sums = [torch.zeros(layer.num_heads, dtype=torch.float64) for layer in layers]

    def add(total: torch.Tensor, layer: Any, args: Any, kwargs: Any) -> None:
        k = _rotated(layer, args[0], kwargs["rope"], of)
        total += rope_truncated_rank(k.float(), min(r, k.shape[-1])).sum(0).double().cpu()

    handles = [
        layer.register_forward_pre_hook(partial(add, total), with_kwargs=True)
        for layer, total in zip(layers, sums, strict=True)
    ]
    count = 0
    weight = layers[0].proj.weight
    try:
        with evaluating(model):
            for batch in loader:
                pictures = batch[0] if isinstance(batch, (tuple, list)) else batch
                model(pictures.to(weight.device, weight.dtype))
                count += len(pictures)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("loader must give pictures to choose heads by, it is empty")
    return sums


def _rotated(layer: Any, x: torch.Tensor, rope: torch.Tensor, of: str) -> torch.Tensor:
    """The rotated keys or queries of the patches that a layer of timm's makes, `(B, heads, N, d)`."""
    number, letter = (1, "k") if of == "keys" else (0, "q")
    if layer.qkv is not None:
        weight = layer.qkv.weight.chunk(3)[number]
        bias = None if layer.qkv.bias is None else layer.qkv.bias.chunk(3)[number]
        if getattr(layer, "q_bias", None) is not None:
            own = getattr(layer, f"{letter}_bias")
            bias = own if bias is None else bias + own
        k = F.linear(x, weight, bias)
    else:
        k = getattr(layer, f"{letter}_proj")(x)
    k = getattr(layer, f"{letter}_norm")(k.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2))
    return apply_rot_embed_cat(
        k[:, :, layer.num_prefix_tokens :], rope, half=bool(getattr(layer, "rotate_half", False))
    )


def _low_of(network: Any, count: int, train_grid: tuple[int, int] | None) -> list[torch.Tensor]:
    """The low bands of each layer at the grid that the network was trained at."""
    if train_grid is None:
        sides = zip(network.pretrained_cfg["input_size"][1:], network.patch_embed.patch_size, strict=True)
        height, width = (side // size for side, size in sides)
    else:
        height, width = train_grid
        check_positive(**{"height of train_grid": height, "width of train_grid": width})
    rope = copy.deepcopy(network.rope)
    if hasattr(rope, "update_feat_shape"):
        rope.update_feat_shape([height, width])
    table = rope.get_embed(shape=[height, width]).detach()
    tables = list(table) if table.ndim == 4 else [table] * count  # those of RoPE-Mixed have one for each layer
    return [low_bands(one, (height, width)) for one in tables]

"""Adapters that hold a mixer in place of another network's attention."""

from functools import partial
from math import isqrt
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from torch import nn

from visionattn.ops import attention
from visionattn.utils.transparent import hide_child

from ._common import split_heads

__all__ = ["ChannelsFirstBlock", "MapBlock", "PrefixedMap", "TokenAttention"]


class PrefixedMap(nn.Module):
    """A map mixer with extra tokens: it mixes the patches, and the extra tokens attend to all tokens by softmax.

    `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

    Args:
        mixer: `(B, H, W, C) -> (B, H, W, C)`.
        queries: The attention that was there before, which the extra tokens keep; none: they use the mixer's own
            `qkv` and `proj`, which come from there.
    """

    def __init__(self, mixer: nn.Module, queries: nn.Module | None) -> None:
        super().__init__()
        self.mixer = mixer
        self.queries = queries
        hide_child(self, "mixer" if queries is None else "queries")

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int, **position: Any) -> torch.Tensor:
        patches = self.mixer(x[:, prefix:].unflatten(1, grid)).flatten(1, 2)
        source: Any = self.mixer if self.queries is None else self.queries
        q, k, v = split_heads(source.qkv(x), source.num_heads)
        q = q[:, :, :prefix]
        if hasattr(source, "q_norm"):
            q, k = source.q_norm(q), source.k_norm(k)
        dropped = source.attn_drop.p if self.training else 0.0
        extra = source.proj_drop(source.proj(attention(q, k, v, dropout_p=dropped)))
        return torch.cat([extra, patches], 1)


class TokenAttention(nn.Module):
    """A mixer with the interface of timm's attention in a plain vision transformer. `(B, N, C) -> (B, N, C)`.

    Args:
        mixer: With `forward_tokens(x, grid, prefix)`, or of maps where there are no extra tokens.
        prefix: Number of extra tokens, which come first.
        grid: Height and width of the map of patches at the network's nominal size. Another number of patches is taken
            for a square map.
        bias: The bias that each head adds for each distance, with which tokens are how far apart: `(distances, heads)`
            and `(N, N)`; none if there is none.
        rotate_half: Which of timm's two layouts rotary embeddings have.
    """

    def __init__(
        self,
        mixer: nn.Module,
        prefix: int,
        grid: tuple[int, int],
        *,
        bias: tuple[nn.Parameter, torch.Tensor] | None = None,
        rotate_half: bool = False,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.prefix = prefix
        self.grid = grid
        self.rotate_half = rotate_half
        self.has_bias = bias is not None
        if bias is not None:
            self.relative_position_bias_table = bias[0]
            self.relative_position_index: torch.Tensor
            self.register_buffer("relative_position_index", bias[1], persistent=False)
        hide_child(self, "mixer")

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
        shared_rel_pos_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self.mixer).__name__}, which replaces attention here, takes no attn_mask")
        grid = self._grid(x.shape[1] - self.prefix)
        position: dict[str, Any] = {}
        if rope is not None:
            position["rotate"] = partial(self._rotate, rope)
        if self.has_bias:
            position["bias"] = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if shared_rel_pos_bias is not None:
            position["bias"] = shared_rel_pos_bias + position.get("bias", 0)
        mixer: Any = self.mixer
        if hasattr(mixer, "forward_tokens"):
            return mixer.forward_tokens(x, grid, self.prefix, **position)
        return mixer(x.unflatten(1, grid)).flatten(1, 2)

    def _rotate(self, rope: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Rotates queries or keys `(B, heads, N, d)` by the positions of the patches."""
        patches = apply_rot_embed_cat(x[:, :, self.prefix :], rope, half=self.rotate_half)
        return torch.cat([x[:, :, : self.prefix], patches], 2).type_as(x)

    def _grid(self, patches: int) -> tuple[int, int]:
        if patches == self.grid[0] * self.grid[1]:
            return self.grid
        side = isqrt(int(patches))
        if side * side == patches:
            return side, side
        raise ValueError(
            f"{patches} patches are neither the {self.grid[0]}x{self.grid[1]} of the network's img_size nor a square: "
            "build the network with the img_size that it is used at"
        )


class MapBlock(nn.Module):
    """A block of timm's Swin with a map mixer in place of window attention. `(B, H, W, C)` each.

    Args:
        block: The block, whose other parts it takes over under their names.
        mixer: `(B, H, W, C) -> (B, H, W, C)`.
        norm_last: Whether norms stand behind attention and MLP, as in Swin V2.
    """

    def __init__(self, block: Any, mixer: nn.Module, *, norm_last: bool) -> None:
        super().__init__()
        self.norm_last = norm_last
        self.norm1 = block.norm1
        self.attn = mixer
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, part, drop in (
            (self.norm1, self.attn, self.drop_path1),
            (self.norm2, self.mlp, self.drop_path2),
        ):
            x = x + drop(norm(part(x)) if self.norm_last else part(norm(x)))
        return x

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: mixers accept any map size."""


class ChannelsFirstBlock(nn.Module):
    """A block of timm's DaViT with a map mixer in place of its attention. `(B, C, H, W)` each.

    Args:
        block: The block, whose other parts it takes over under their names.
        mixer: `(B, H, W, C) -> (B, H, W, C)`.
    """

    def __init__(self, block: Any, mixer: nn.Module) -> None:
        super().__init__()
        self.cpe1 = block.cpe1
        self.norm1 = block.norm1
        self.attn = mixer
        self.drop_path1 = block.drop_path1 or nn.Identity()
        self.cpe2 = block.cpe2
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = getattr(block, "drop_path2", None) or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe1(x).permute(0, 2, 3, 1)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x.permute(0, 3, 1, 2))
        if self.mlp is None:
            return x
        x = x.permute(0, 2, 3, 1)
        return (x + self.drop_path2(self.mlp(self.norm2(x)))).permute(0, 3, 1, 2)

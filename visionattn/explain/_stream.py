"""What the parts of a plain vision transformer add to its tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn

from .capture import capture

__all__ = ["HeadWeights", "Stream", "blocks_of", "head_weights", "read_stream"]


@dataclass(frozen=True)
class HeadWeights:
    """Projections of one attention, a matrix a head, behind the gain and the bias of the norm before it.

    `query = x @ q[h].T + q_bias[h]` of a normalised token x without gain and bias, and so on.

    Args:
        q: `(heads, d, C)`; `k` and `v` likewise.
        q_bias: `(heads, d)`; `k_bias` and `v_bias` likewise.
        out: `(heads, d, C)`: what a head's output is multiplied by from the right, with the layer's scale.
        out_bias: `(C,)`.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_bias: torch.Tensor
    k_bias: torch.Tensor
    v_bias: torch.Tensor
    out: torch.Tensor
    out_bias: torch.Tensor


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks of a `VisionTransformer` of timm's.

    Raises:
        ValueError: If the network is another, or its blocks do more than a norm, attention, a norm and an MLP.
    """
    network: Any = model
    blocks = list(getattr(network, "blocks", ()))
    plain = all(type(block) is Block for block in blocks)
    if (
        not blocks
        or not plain
        or not all(hasattr(network, part) for part in ("norm", "fc_norm", "head", "patch_embed"))
    ):
        raise ValueError(f"model must be a VisionTransformer of timm's with plain blocks, got {type(model).__name__}")
    for number, block in enumerate(blocks):
        attn = block.attn
        if not hasattr(attn, "qkv") or attn.gate is not None or not isinstance(attn.norm, nn.Identity):
            raise ValueError(f"attention of block {number} must have one qkv, no gate and no norm of its output")
        if not isinstance(block.norm1, nn.LayerNorm):
            raise ValueError(f"the norms of block {number} must be layer norms, got {type(block.norm1).__name__}")
    return blocks


def head_weights(block: Any) -> HeadWeights:
    """Of a block of `blocks_of`."""
    attn, norm = block.attn, block.norm1
    heads = attn.num_heads
    weight = attn.qkv.weight.detach()
    bias = weight.new_zeros(len(weight)) if attn.qkv.bias is None else attn.qkv.bias.detach()
    bias = bias + weight @ norm.bias.detach()
    q, k, v = (weight * norm.weight.detach()).unflatten(0, (3, heads, -1)).unbind(0)
    q_bias, k_bias, v_bias = bias.unflatten(0, (3, heads, -1)).unbind(0)
    scale = getattr(block.ls1, "gamma", torch.ones(())).detach()
    out = (attn.proj.weight.detach() * scale.expand(len(attn.proj.weight))[:, None]).T.unflatten(0, (heads, -1))
    out_bias = torch.zeros_like(out[0, 0]) if attn.proj.bias is None else attn.proj.bias.detach() * scale
    return HeadWeights(q, k, v, q_bias, k_bias, v_bias, out, out_bias)


@dataclass(frozen=True)
class Stream:
    """The parts of the tokens behind the last block: `start + sum_l attention_l + mlp_l`.

    Args:
        start: Tokens before the first block `(B, T, C)`, extra ones first.
        probs: Of each layer `(B, heads, T, T)`.
        v: Values of each layer `(B, heads, T, d)`.
        mlp: What the MLP of each layer adds `(B, T, C)`.
        weights: Of each layer.
        prefix: Number of extra tokens.
        grid: `(H, W)` of the others.
    """

    start: torch.Tensor
    probs: list[torch.Tensor]
    v: list[torch.Tensor]
    mlp: list[torch.Tensor]
    weights: list[HeadWeights]
    prefix: int
    grid: tuple[int, int]

    def heads(self, layer: int) -> torch.Tensor:
        """What each head adds to each token, but for the bias of the projection. `(B, heads, T, C)`."""
        return torch.einsum("bhtd,hdc->bhtc", self.probs[layer] @ self.v[layer], self.weights[layer].out)

    def before(self, layer: int) -> torch.Tensor:
        """Tokens before a block; before the one after the last: those that the last norm gets. `(B, T, C)`."""
        added = [self.heads(i).sum(1) + self.weights[i].out_bias + self.mlp[i] for i in range(layer)]
        return self.start + sum(added, torch.zeros_like(self.start))


@torch.no_grad()
def read_stream(model: nn.Module, x: torch.Tensor) -> Stream:
    """Runs a network once, in evaluation mode."""
    blocks = blocks_of(model)
    start: list[torch.Tensor] = []
    mlp: list[torch.Tensor] = []
    handles = [blocks[0].register_forward_pre_hook(lambda module, args: start.append(args[0]))]
    handles += [block.ls2.register_forward_hook(lambda module, args, out: mlp.append(out)) for block in blocks]
    try:
        with capture(model, keep=("probs", "v")) as record:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    layers = list(record)[: len(blocks)]
    known = record.tokens
    assert known.grid is not None
    return Stream(
        start[0],
        [layer.probs[:, 0] for layer in layers],
        [layer.v[:, 0] for layer in layers],
        mlp,
        [head_weights(block) for block in blocks],
        known.prefix,
        known.grid,
    )

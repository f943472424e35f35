"""BOAT: Bilateral Local Attention Vision Transformer (BMVC 2022, arXiv 2201.13027).

Code of the published weights: https://github.com/mahaoyuHKU/pytorch-boat (under the MIT licences of Swin and CSWin),
ContentAttention of BOAT-Swin and BOAT-CSwin.

Differs from that code in:
- any number of tokens, on any grid, where theirs asks for squares of 49 * 2**k;
- a single cluster has no sibling, where theirs makes consecutive images of the batch siblings (see `legacy`);
- clustering takes no gradients, runs in float32 under autocast, and stays finite where theirs divides by zero.

Golden: tests/golden/boat_*_fsla_module_*.npz (outputs, input gradients, order of the tokens).
"""

from operator import index
from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card, Floor, get
from visionattn.ops import balanced_bisection, cluster_attention
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

__all__ = ["FeatureSpaceLocalAttention"]


class FeatureSpaceLocalAttention(nn.Module):
    """Attention among similar tokens, wherever they are, plus a depthwise convolution of the values.

    `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1. Each head clusters the tokens by its queries
    (`visionattn.ops.balanced_bisection`); queries see their own cluster and a part of its sibling. Which tokens share
    a cluster changes in jumps: rounding, of half precision above all, may move a token, and the result by much more.
    The paper's networks put it between the local attention of a block and its MLP.

    Args:
        dim: Width of the tokens.
        num_heads: Heads, each with its own clusters.
        cluster_size: Most tokens in a cluster.
        overlap: Keys and values of the sibling that a cluster sees as well.
        iterations: How often the two centroids of a bisection are renewed.
        temperature: Sharpness of the assignment to centroids.
        scale: Factor of the attention logits, `head_dim**-0.5` if None. The published BOAT-CSwin was trained with 1.0.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the last projection.
        legacy: Where the tokens are just one cluster (H * W == cluster_size), let images 2j and 2j + 1 of the batch see
            a part of each other, as BOAT-CSwin was trained. Such predictions depend on what else is in the batch.

    Raises:
        ValueError: If an argument is out of range; in forward, if `legacy` meets an odd batch of single clusters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        cluster_size: int = 49,
        overlap: int = 20,
        iterations: int = 2,
        temperature: float = 100.0,
        scale: float | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        legacy: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if cluster_size < 2:
            raise ValueError(f"cluster_size must be at least 2, got {cluster_size}")
        if not 0 <= overlap <= cluster_size:
            raise ValueError(f"overlap must be from 0 to cluster_size ({cluster_size}), got {overlap}")
        if iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {iterations}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.cluster_size = cluster_size
        self.overlap = overlap
        self.iterations = iterations
        self.temperature = temperature
        self.scale = scale
        self.legacy = legacy
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, dim = x.size(0), x.size(-1)
        # Compilers get a graph for each grid: it decides the number of rounds, and Inductor hangs on an unknown one.
        height, width = index(x.size(1)), index(x.size(2))
        pair_images = self.legacy and height * width == self.cluster_size
        if pair_images and batch % 2:
            raise ValueError(f"legacy pairs the images of a batch, which must be even, got {batch}")
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1)
        order = balanced_bisection(
            qkv[:, :, 0].transpose(1, 2),
            cluster_size=self.cluster_size,
            iterations=self.iterations,
            temperature=self.temperature,
        )
        out, values = cluster_attention(
            qkv,
            order,
            overlap=self.overlap,
            scale=self.scale,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            pair_images=pair_images,
        )
        out, values = (part.view(batch, height, width, dim) for part in (out, values))
        local = self.get_v(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(self.proj(out + local))


def _mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
    """Swin, and attention in feature space in the shifted blocks of the first three stages."""
    mixers = get("mixer", "swin").build_mixers(context, **dd)
    if context.block % 2 and context.stage < 3:
        mixers["content"] = CARD.build_in(context, **dd)
    return mixers


CARD = Card(
    name="boat",
    title="BOAT: Bilateral Local Attention Vision Transformer",
    kind="mixer",
    factory=FeatureSpaceLocalAttention,
    summary="attention in clusters of tokens that are alike",
    flow="(((q | k of the cluster) -> @ -> softmax | v of the cluster) -> @ | v -> depthwise conv) -> + -> proj",
    paper="arXiv:2201.13027",
    code="https://github.com/mahaoyuHKU/pytorch-boat",
    license="MIT, in its files",
    placement="between the local attention of a block and its MLP, in every second block of the first three stages",
    avoid="where neighbouring frames must give alike results: clusters are cut at the median, so small changes "
    "move tokens to another one",
    pyramid=("nano", "micro", "tiny"),
    mixers=_mixers,
    cases={"": {"num_heads": 3, "cluster_size": 8, "overlap": 3}},
    floor=Floor(14, 24, "windows, and k, v once more for siblings, v for the convolution"),
    cost="N w + N log N",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="boat",
)

"""The pyramid: a stem, stages of blocks with downsampling between them, norms, a head, as in MetaFormer's networks.

A family says what its blocks, stem, downsampling and norms are; everything that timm expects of a network is here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple
from torch import nn

from visionattn.catalog import BlockContext
from visionattn.utils.factory import FactoryKwargs

from ..layers import Norm
from .backbone import Backbone, ConvInit, checkpoint_block, stride_of

__all__ = ["Pyramid", "Stage"]


class Stage(nn.Module):
    """Downsampling, blocks, a norm. `(B, H, W, C) -> (B, H', W', C')`."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm

    def forward(self, x: torch.Tensor, checkpointing: bool = False) -> torch.Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint_block(block, x) if checkpointing else block(x)
        return self.norm(x)


class Pyramid(Backbone[torch.Tensor]):
    """A network of token mixers in stages. `(B, in_chans, H, W) -> (B, num_classes)`, any H, W of at least its stride.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage, for the blocks' contexts.
        block: Builds a block, such as `layers.Block`: called with a `BlockContext`, `device` and `dtype`.
        stem: Builds what turns the picture, channels-last, into the first map: `(in_chans, dims[0])`.
        downsample: Builds what stands at the start of each further stage: `(dim, out_dim)`; none keeps the resolution.
        stage_norm: Builds a norm for the end of each stage; the next stage reads what it gives.
        final_norm: Builds what the last map goes through before the head: `(dims[-1])`; its module is called `final`.
        final_dim: Width after it, if it is another.
        head_norm: Epsilon of a layer norm between pooling and classifier; none leaves it out.
        feature_norms: Whether intermediate maps that are handed out go through a layer norm each, which the next stage
            does not see, as some dense prediction code has it.
        conv_init: Start of the convolutions' weights; none leaves PyTorch's.
        no_weight_decay_parts: Parts of the names of parameters that no weight decay should touch.
        img_size: Nominal side of the picture, or height and width, for the grids of the blocks' contexts.
        in_chans: Channels of the picture.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: Pooling of the head, as in timm; empty for none.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after projections and in MLPs.
        drop_path_rate: Stochastic depth of the last block; linear from 0 at the first.

    Raises:
        ValueError: If `dims`, `depths` and `num_heads` do not fit each other.
    """

    level_name = "stages"

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int] | None = None,
        *,
        block: Callable[..., nn.Module],
        stem: Callable[..., nn.Module],
        downsample: Callable[..., nn.Module] | None = None,
        stage_norm: Norm | None = None,
        final_norm: Norm | None = None,
        final_dim: int | None = None,
        head_norm: float | None = None,
        feature_norms: bool = False,
        conv_init: ConvInit | None = None,
        no_weight_decay_parts: Sequence[str] = (),
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        heads = [1] * len(dims) if num_heads is None else list(num_heads)
        if not dims or not len(dims) == len(depths) == len(heads) or min(*dims, *depths, *heads) < 1:
            raise ValueError(
                "dims, depths and num_heads must hold one number >= 1 for each stage, got "
                f"dims={tuple(dims)}, depths={tuple(depths)}, num_heads={tuple(heads)}"
            )
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__()
        self.in_chans = in_chans
        self.no_weight_decay_parts = tuple(no_weight_decay_parts)
        self.stem = stem(in_chans, dims[0], **dd)
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        self.feature_info = []
        stride = stride_of(self.stem)
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            down = downsample(dims[i - 1], dim, **dd) if downsample and i else nn.Identity()
            stride *= stride_of(down)
            height, width = (-(-side // stride) for side in to_2tuple(img_size))
            blocks = [
                block(
                    BlockContext(
                        i, j, dim, rates[i][j], attn_drop_rate, proj_drop_rate, num_heads=heads[i], grid=(height, width)
                    ),
                    **dd,
                )
                for j in range(depth)
            ]
            stages.append(Stage(down, blocks, stage_norm(dim, **dd) if stage_norm else nn.Identity()))
            self.feature_info.append({"module": f"stages.{i}", "num_chs": dim, "reduction": stride})
        self.stages = nn.Sequential(*stages)
        self.final = final_norm(dims[-1], **dd) if final_norm else nn.Identity()
        self.feature_norms = nn.ModuleList(nn.LayerNorm(dim, **dd) for dim in dims if feature_norms)
        self.build_head(
            final_dim or dims[-1],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm_eps=head_norm,
            **dd,
        )
        self.init_weights(conv_init)

    def start(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x.permute(0, 2, 3, 1))

    def run(self, level: nn.Module, flow: torch.Tensor) -> torch.Tensor:
        return level(flow, self.grad_checkpointing and self.training)

    def read(self, flow: torch.Tensor, level: int, norm: bool) -> torch.Tensor:
        if self.feature_norms:
            return self.feature_norms[level](flow)
        return self.final(flow) if norm and level == len(self.stages) - 1 else flow

    def end(self, flow: torch.Tensor) -> torch.Tensor:
        return self.final(flow).permute(0, 3, 1, 2)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups the parameters by depth, for layer-wise rates."""
        stages = (
            [(r"^stages\.(\d+)", None)]
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),  # with the first block of its stage
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
            ]
        )
        return {"stem": r"^stem", "blocks": [*stages, (r"^final|^feature_norms", (99999,))]}

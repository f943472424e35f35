"""The columnar host: one resolution, extra tokens first, a sequence of blocks, as in a plain vision transformer.

A mixer of tokens (`forward_tokens(x, grid, prefix)`) gets all tokens, a mixer of maps the patches; the latter has no
place for extra tokens, so networks of it have none. A mixer that depends on earlier layers says so (`cross_layer =
True`): it takes `state`, what the same mixer of the block before returned (none in the first block), and returns its
result and the state for the next block. Nothing of this is kept in attributes, so it works with gradient checkpointing,
compilation and export.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple
from torch import nn

from visionattn.catalog import BlockContext
from visionattn.ops.losses import Losses, call_with_losses
from visionattn.utils.factory import FactoryKwargs

from ..layers import Mlp, Norm, PatchConv, PositionEmbedding, ResidualBranch, branch_builder
from .backbone import Backbone, checkpoint_block

__all__ = ["STAGED_KEYS", "Columnar", "ColumnarBlock", "quarters"]

# Names from when columnar networks were pyramids whose stages had a block each, in turn, and ours.
STAGED_KEYS = (
    (r"^stages\.(\d+)\.blocks\.0\.", r"blocks.\1."),
    (r"^stem\.patches\.", "stem."),
    (r"^stem\.position\.", "position."),
)
State = Any  # nested tuples, lists or dictionaries of tensors


class Tokens(NamedTuple):
    """The state passed from block to block.

    Attributes:
        x: `(B, prefix + H * W, C)`.
        grid: `(H, W)`.
        states: For each mixer of a block what it returned in the block before.
    """

    x: torch.Tensor
    grid: tuple[int, int]
    states: dict[str, State]


class ColumnarBlock(nn.Module):
    """Residual branches of mixers, then of an MLP. `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

    Args:
        prefix: Number of extra tokens.
        mixers: The branches of the mixers by name.
        mlp: The branch of the MLP, which may see the map or all tokens as a mixer does (`forward_tokens`).
        position: What encodes positions before the mixers, on the map of the patches.

    Raises:
        ValueError: If there are extra tokens and a mixer or the encoding takes maps only.
    """

    has_losses = True

    def __init__(
        self,
        prefix: int,
        mixers: Mapping[str, ResidualBranch],
        mlp: ResidualBranch,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.mixer_names = tuple(mixers)
        if position is not None:
            self.position = position
        for name, branch in mixers.items():
            self.add_module(name, branch)
        self.mlp = mlp
        parts = [] if position is None else [position]
        maps = [part for part in parts + [b.fn for b in mixers.values()] if not hasattr(part, "forward_tokens")]
        if prefix and maps:
            raise ValueError(
                f"{type(maps[0]).__name__} mixes maps only and has no place for {prefix} extra tokens: leave out class "
                "token, registers and prompts, with global_pool='avg'"
            )

    def forward(
        self, x: torch.Tensor, grid: tuple[int, int], states: dict[str, State], losses: Losses | None = None
    ) -> tuple[torch.Tensor, dict[str, State]]:
        """The tokens, and the state that the mixers pass to the next block."""
        if hasattr(self, "position"):
            x = self.position(x.unflatten(1, grid)).flatten(1, 2)
        states = dict(states)
        for name in self.mixer_names:
            branch = getattr(self, name)
            y = branch.norm(x)
            extra = {"losses": losses} if getattr(branch.fn, "has_losses", False) else {}
            if stateful := getattr(branch.fn, "cross_layer", False):
                extra["state"] = states.get(name)
            if self.prefix:
                y = branch.fn.forward_tokens(y, grid, self.prefix, **extra)
            else:
                y = branch.fn(y.unflatten(1, grid), **extra)
            if stateful:
                y, states[name] = y
            x = branch.add(x, y if self.prefix else y.flatten(1, 2))
        mlp: Any = self.mlp.fn
        if hasattr(mlp, "forward_tokens"):
            return self.mlp.add(x, mlp.forward_tokens(self.mlp.norm(x), grid, self.prefix)), states
        return call_with_losses(self.mlp, x, losses=losses), states


class Columnar(Backbone[Tokens]):
    """A vision transformer of one resolution. `(B, in_chans, H, W) -> (B, num_classes)`, any H, W >= 1.

    Pictures are filled up with zeros to whole patches. The extra tokens are learnt and come first: class token,
    registers, prompts.

    Args:
        dim: Width.
        depth: Number of blocks, each of which can be read as a feature map.
        num_heads: Heads.
        mixers: Builds the mixers of a block, by name: called with a `BlockContext`, `device` and `dtype`.
        block_position: Builds what encodes positions before the mixers of a block from the same, or none.
        mlp: Builds the MLP of a block from the same; by default two linear layers with `mlp_ratio`.
        stem: Builds what makes the patches from `in_chans` and `dim`, `(B, H, W, in_chans) -> (B, H', W', dim)`, sides
            rounded up; by default one convolution.
        patch_size: Side of the patches.
        img_size: Nominal side of the picture, or height and width: what belongs to positions is learnt for it and
            interpolated for others.
        position: Whether patches get a learnt position embedding.
        class_token: Whether there is a class token; by default where `global_pool` is `token`.
        num_registers: Further tokens that nothing is read from (arXiv 2309.16588).
        num_prompts: Learnt prompts, for tuning (arXiv 2203.12119).
        mlp_ratio: Hidden width of the MLPs over the width.
        norm: Builds the norms, of the blocks and behind the last one.
        layer_scale: Start of the scale of each branch; none leaves it out.
        no_weight_decay_parts: Parts of the names of parameters that no weight decay should touch, besides those of the
            extra tokens and the position embedding.
        in_chans: Channels of the picture.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: What the head reads: `token` (the class token), `avg` or another of timm's poolings (the patches);
            empty for everything.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after projections and in MLPs.
        drop_path_rate: Stochastic depth of the last block; linear from 0 at the first.

    Raises:
        ValueError: If a number is out of range, the head is to read a class token that is not there, or a mixer has no
            place for extra tokens.
    """

    level_name = "blocks"

    def __init__(
        self,
        dim: int,
        depth: int = 12,
        num_heads: int = 3,
        *,
        mixers: Callable[..., Mapping[str, nn.Module]],
        block_position: Callable[..., nn.Module | None] | None = None,
        mlp: Callable[..., nn.Module] | None = None,
        stem: Callable[..., nn.Module] | None = None,
        patch_size: int = 16,
        img_size: int | tuple[int, int] = 224,
        position: bool = True,
        class_token: bool | None = None,
        num_registers: int = 0,
        num_prompts: int = 0,
        mlp_ratio: float = 4.0,
        norm: Norm = partial(nn.LayerNorm, eps=1e-6),  # noqa: B008 (it is immutable)
        layer_scale: float | None = None,
        no_weight_decay_parts: tuple[str, ...] = (),
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
        for name, value, least in (
            ("dim", dim, 1),
            ("depth", depth, 1),
            ("num_heads", num_heads, 1),
            ("patch_size", patch_size, 1),
            ("num_registers", num_registers, 0),
            ("num_prompts", num_prompts, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        height, width = (-(-side // patch_size) for side in to_2tuple(img_size))
        patches = partial(PatchConv, kernel_size=patch_size, stride=patch_size, pad_to_stride=True)
        self.patch_size = patch_size
        self.stem = (stem or patches)(in_chans, dim, **dd)
        self.position = PositionEmbedding(dim, (height, width), mode="bicubic", **dd) if position else nn.Identity()
        has_class = global_pool == "token" if class_token is None else class_token
        counts = {"cls_token": int(has_class), "reg_token": num_registers, "prompt_token": num_prompts}
        self.extra_tokens = tuple(name for name, count in counts.items() if count)
        for name in self.extra_tokens:
            token = torch.empty(1, counts[name], dim, **dd)
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(token, std=0.02)))
        self.num_prefix_tokens = sum(counts.values())
        self.no_weight_decay_parts = ("position.", *counts, *no_weight_decay_parts)
        blocks = []
        rates: Any = calculate_drop_path_rates(drop_path_rate, depth)
        for i, rate in enumerate(rates):
            context = BlockContext(0, i, dim, rate, attn_drop_rate, proj_drop_rate, num_heads, (height, width))
            branch = branch_builder(context, norm=norm, layer_scale=layer_scale, **dd)
            encoding = block_position(context, **dd) if block_position else None
            branches = {name: branch(mixer) for name, mixer in mixers(context, **dd).items()}
            last = mlp(context, **dd) if mlp else Mlp(dim, ratio=mlp_ratio, drop=proj_drop_rate, **dd)
            blocks.append(ColumnarBlock(self.num_prefix_tokens, branches, branch(last), encoding))
        self.blocks = nn.Sequential(*blocks)
        self.final = norm(dim, **dd)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": dim, "reduction": patch_size} for i in range(len(blocks))
        ]
        self._set_pool(global_pool)
        self.build_head(
            dim, num_classes=num_classes, global_pool=self._head_pool(global_pool), drop_rate=drop_rate, **dd
        )
        self.init_weights()

    def start(self, x: torch.Tensor) -> Tokens:
        x = self.position(self.stem(x.permute(0, 2, 3, 1)))
        grid = (x.shape[1], x.shape[2])
        extra = [getattr(self, name).expand(x.shape[0], -1, -1) for name in self.extra_tokens]
        return Tokens(torch.cat([*extra, x.flatten(1, 2)], 1) if extra else x.flatten(1, 2), grid, {})

    def run(self, level: nn.Module, flow: Tokens) -> Tokens:
        if self.grad_checkpointing and self.training:
            x, states = checkpoint_block(level, *flow)
        else:
            x, states = level(*flow)
        return Tokens(x, flow.grid, states)

    def read(self, flow: Tokens, level: int, norm: bool) -> torch.Tensor:
        x = self.final(flow.x) if norm else flow.x
        return x[:, self.num_prefix_tokens :].unflatten(1, flow.grid)

    def end(self, flow: Tokens) -> torch.Tensor:
        x = self.final(flow.x)
        return x if self.num_prefix_tokens else x.mT.unflatten(2, flow.grid)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The final map `(B, C, H', W')`; with extra tokens all tokens, `(B, prefix + H' * W', C)`."""
        return super().forward_features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pools the features, or takes the class token, and classifies it, or stops before the classifier."""
        if self.num_prefix_tokens and self.global_pool:
            x = (x[:, :1] if self.global_pool == "token" else x[:, self.num_prefix_tokens :]).mT.unsqueeze(-1)
        return self.head(x, pre_logits=pre_logits)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new classifier in.

        Args:
            num_classes: Its classes; 0 for none.
            global_pool: What it reads, if that changes; as for the constructor.

        Raises:
            ValueError: If it is to read a class token that is not there.
        """
        if global_pool is not None:
            self._set_pool(global_pool)
        super().reset_classifier(num_classes, None if global_pool is None else self._head_pool(global_pool))

    def _set_pool(self, global_pool: str) -> None:
        if global_pool == "token" and "cls_token" not in self.extra_tokens:
            raise ValueError("global_pool='token' needs a class token: build the network with class_token=True")
        self.global_pool = global_pool

    @staticmethod
    def _head_pool(global_pool: str) -> str:
        """The head's pooling: the mean over the class token alone is that token."""
        return "avg" if global_pool == "token" else global_pool

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups the parameters by depth, for layer-wise rates."""
        return {
            "stem": r"^stem|^position|^\w+_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^final", (99999,))],
        }


def quarters(depth: int = 12, **_: Any) -> dict[str, Any]:
    """The default features that timm reads from a columnar network of this depth: after each quarter of the blocks."""
    indices = {max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4)}
    return {"out_indices": tuple(sorted(indices)), "feature_cls": "getter"}

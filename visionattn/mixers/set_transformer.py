"""Set Transformer (ICML 2019, arXiv 1810.00825): its blocks SAB, over all pairs, and ISAB, through inducing points.

Official code: https://github.com/juho-lee/set_transformer (MIT), modules.py.

Differs from the official code in:
- `form="prenorm"`, which the test beds have: the attention alone, as a host's residual branch wants it. The official
  form, the default, has its own residuals and feed-forward layer inside: do not add another residual round it;
- heads that do not divide the width are refused, where the official code would fail.

The pooling block PMA is a head: `visionattn.heads.PMAPool`.

Golden: tests/golden/settransformer_*.npz (outputs, input gradients).
"""

from collections.abc import Callable

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer
from ._mab import MultiheadAttentionBlock

__all__ = ["ISABMixer", "SABMixer"]

_FORMS = ("paper", "prenorm")


class SABMixer(TokenMixer):
    """Set attention block: self-attention of all elements. `(B, H, W, dim_in) -> (B, H, W, dim)`, any H, W >= 1.

    The result moves with the elements wherever they go: positions must be in them.

    Args:
        dim: Width of the result.
        num_heads: Heads, a divisor of `dim`. The scale of the scores is `dim ** -0.5`, not that of a head.
        dim_in: Width of the elements; `dim` if None.
        norm: Layer norms after both sums, of the form `paper` only.
        form: `paper`: with residuals and a feed-forward layer inside; `prenorm`: the attention alone.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `form` is unknown or `norm` does not go with it.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        dim_in: int | None = None,
        norm: bool = False,
        form: str = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_form(form, norm)
        width = dim if dim_in is None else dim_in
        check_positive(dim_in=width)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.mab = MultiheadAttentionBlock(
            width, width, dim, num_heads=num_heads, norm=norm, residual=form == "paper", **dd
        )

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The block on tokens, `(B, prefix + H * W, dim_in) -> (B, prefix + H * W, dim)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            rotate: Rotates queries and keys `(B, num_heads, N, dim / num_heads)` by their positions.
            bias: Added to the scores, or False where a key is not seen; broadcasts to `(B, num_heads, N, N)`.
        """
        out: torch.Tensor = self.mab(x, x, mask=bias, rotate=rotate)
        return out

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        x = x.flatten(1, -2)
        return self.mab.weights(x, x)


class ISABMixer(TokenMixer):
    """Induced set attention block: elements attend to each other through learnt points. `(B, H, W, C)`, same out.

    From `(B, H, W, dim_in)` to `(B, H, W, dim)`, any H, W >= 1, with `num_inducing` scores an element and head each
    way. It moves with the elements wherever they go: positions must be in them. There is no matrix of what an element
    takes from another: the values are projected between the two attentions.

    Args:
        dim: Width of the result.
        num_heads: Heads, a divisor of `dim`. The scale of the scores is `dim ** -0.5`, not that of a head.
        num_inducing: Inducing points.
        dim_in: Width of the elements; `dim` if None.
        norm: Layer norms after all sums, of the form `paper` only.
        form: `paper`: with residuals and feed-forward layers inside; `prenorm`: the two attentions alone.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `num_inducing` is below 1, `form` is unknown or `norm` does
            not go with it.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        num_inducing: int = 32,
        dim_in: int | None = None,
        norm: bool = False,
        form: str = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_form(form, norm)
        width = dim if dim_in is None else dim_in
        check_positive(num_inducing=num_inducing, dim_in=width)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        residual = form == "paper"
        self.num_heads = num_heads
        self.mab0 = MultiheadAttentionBlock(dim, width, dim, num_heads=num_heads, norm=norm, residual=residual, **dd)
        self.mab1 = MultiheadAttentionBlock(width, dim, dim, num_heads=num_heads, norm=norm, residual=residual, **dd)
        self.I = nn.Parameter(torch.empty(1, num_inducing, dim, **dd))
        nn.init.xavier_uniform_(self.I)

    def forward_tokens(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0, *, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The block on tokens, `(B, prefix + H * W, dim_in) -> (B, prefix + H * W, dim)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            mask: False for tokens that the inducing points do not see, `(B, N)`; each must see one.
        """
        points = self.mab0(self.I, x, mask=None if mask is None else mask[:, None, None])
        out: torch.Tensor = self.mab1(x, points)
        return out


def _check_form(form: str, norm: bool) -> None:
    check_choice("form", form, _FORMS)
    if norm and form != "paper":
        raise ValueError(f"norm=True needs form='paper', which has the sums that are normed, got form={form!r}")


CARDS = (
    Card(
        name="sab",
        title="Set attention block of the Set Transformer",
        kind="mixer",
        factory=SABMixer,
        summary="attention of all elements of a set with a residual on the projected queries",
        flow="(q | ((q | k) -> @ -> softmax | v) -> @) -> + -> (. | linear, ReLU) -> +",
        paper="arXiv:1810.00825",
        code="https://github.com/juho-lee/set_transformer",
        license="MIT",
        placement="in every block in place of attention; the official form in place of the whole block",
        avoid="on large sets: it compares all pairs; `isab` of the same paper does not",
        columnar=("nano", "tiny"),
        keywords=lambda context: {"form": "prenorm"},
        cases={
            "": {"num_heads": 3},
            "norm": {"num_heads": 3, "norm": True},
            "prenorm": {"num_heads": 3, "form": "prenorm"},
        },
        floor=WINDOWS,
        cost="N^2",
        memory="N",
        maps=True,
        reference="set_transformer",
    ),
    Card(
        name="isab",
        title="Induced set attention block of the Set Transformer",
        kind="mixer",
        factory=ISABMixer,
        summary="attention of a few learnt points to all elements, and of all elements to these points",
        flow=(
            "(q | ({points} | .) -> attention, feed-forward -> k and v) -> softmax attention, + q -> (. | linear, "
            "ReLU) -> +"
        ),
        paper="arXiv:1810.00825",
        code="https://github.com/juho-lee/set_transformer",
        license="MIT",
        placement="in every block in place of attention; the official form in place of the whole block",
        avoid="where fine detail matters: all that positions tell each other passes through a few learnt points",
        columnar=("nano", "tiny"),
        keywords=lambda context: {"form": "prenorm"},
        cases={
            "": {"num_heads": 3, "num_inducing": 8},
            "norm": {"num_heads": 3, "num_inducing": 8, "norm": True},
            "prenorm": {"num_heads": 3, "num_inducing": 8, "form": "prenorm"},
        },
        floor=WINDOWS,
        reference="set_transformer",
    ),
)

"""Context broadcasting: averages each token with the mean of all tokens (ICCV 2023, arXiv 2210.08457).

No official code was found; the formula is the paper's.

Differs from the official code in: not known. The form of the scaled variant, whose scale starts at zero, is ours.

Golden: tests/golden/cb_*.npz (outputs and input gradients of a literal implementation).
"""

from typing import Any

import torch
from torch import nn

from visionattn.catalog import Card, Floor
from visionattn.utils.arguments import check_choice
from visionattn.utils.modifications import record_modification
from visionattn.utils.transparent import hide_child

__all__ = ["ContextBroadcast", "insert_context_broadcast"]


class ContextBroadcast(nn.Module):
    """Adds the mean of all tokens to each: uniform attention. `(B, H, W, C) -> (B, H, W, C)` or `(B, N, C)` likewise.

    `(x + mean) / 2`, or `x + scale * mean` with a learnt scale a channel, from zero.

    Args:
        dim: Width C.
        scaled: Whether the mean has a learnt scale.
        exclude: First tokens of `(B, N, C)` that the mean leaves out; they get it too.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    takes_tokens = True  # `(B, N, C)` as well as maps

    def __init__(
        self,
        dim: int,
        *,
        scaled: bool = False,
        exclude: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or exclude < 0:
            raise ValueError(f"dim must be at least 1 and exclude at least 0, got dim={dim}, exclude={exclude}")
        self.exclude = exclude
        self.scale = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype)) if scaled else None

    def init_weights(self) -> None:
        """Initialises the scale to zero, so that nothing is added."""
        if self.scale is not None:
            nn.init.zeros_(self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x[:, self.exclude :].mean(1, keepdim=True) if x.ndim == 3 else x.mean((1, 2), keepdim=True)
        return (x + mean) / 2 if self.scale is None else x + self.scale * mean

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """The same of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`; all of them make up the mean.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
        """
        return self(x)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"scaled={self.scale is not None}, exclude={self.exclude}"


class _Broadcasting(nn.Module):
    """A layer with the mean added before or after it; its weights keep their names."""

    def __init__(self, inner: nn.Module, context: ContextBroadcast, *, before: bool) -> None:
        super().__init__()
        self.inner = inner
        self.context = context
        self.before = before
        hide_child(self, "inner")

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.before:
            return self.inner(self.context(x), *args, **kwargs)
        return self.context(self.inner(x, *args, **kwargs))


def insert_context_broadcast(
    model: nn.Module, position: str = "end", scaled: bool = False, exclude_extra: bool = False
) -> nn.Module:
    """Adds the mean of all tokens in the MLP of every block of a vision transformer; changes and returns it.

    Weights keep their names. `scaled=True` leaves the outputs as they are until it is trained; without it the MLPs'
    results are others at once. `model.modifications` notes the call, so that a published file builds the network again.

    Args:
        model: A transformer of timm or of ours, whose blocks have an `mlp`.
        position: Where in the MLP: `front`, before its first layer; `mid`, before its second; `end`, after it.
        scaled: Whether the mean has a learnt scale; else it takes the half of each token.
        exclude_extra: Whether the mean leaves out class tokens, registers and the like.

    Raises:
        ValueError: If `position` is unknown, or the network has no MLP, or one without the layers `fc1` and `fc2`.
    """
    check_choice("position", position, ("front", "mid", "end"))
    network: Any = model if hasattr(model, "num_prefix_tokens") else getattr(model, "model", model)
    exclude = int(getattr(network, "num_prefix_tokens", 0)) if exclude_extra else 0
    places: list[tuple[Any, str, Any]] = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] != "mlp":
            continue
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        inside: Any = module
        holder, key = (inside, "fn") if hasattr(inside, "fn") else (owner, "mlp")
        places.append((holder, key, getattr(holder, key)))
    if not places:
        raise ValueError(f"{type(model).__name__} has no blocks with an mlp to broadcast in")
    wrong = [type(mlp).__name__ for *_, mlp in places if not all(hasattr(mlp, layer) for layer in ("fc1", "fc2"))]
    if wrong:
        raise ValueError(f"context is broadcast in MLPs with layers fc1 and fc2, got {', '.join(sorted(set(wrong)))}")
    for holder, key, mlp in places:
        if position == "mid":
            holder, key = mlp, "fc2"
        inner: Any = getattr(holder, key)
        weight = mlp.fc2.weight
        width = {"front": mlp.fc1, "mid": mlp.fc2}[position].weight.shape[1] if position != "end" else weight.shape[0]
        context = ContextBroadcast(width, scaled=scaled, exclude=exclude, device=weight.device, dtype=weight.dtype)
        setattr(holder, key, _Broadcasting(inner, context, before=position != "end").train(inner.training))
    arguments = {"position": position, "scaled": scaled, "exclude_extra": exclude_extra}
    record_modification(model, "insert_context_broadcast", arguments)
    return model


CARD = Card(
    name="context_broadcast",
    title="Context broadcasting",
    kind="mixer",
    factory=ContextBroadcast,
    summary="half of every token is the mean of all",
    flow="(. | mean of all tokens) -> + -> half",
    paper="arXiv:2210.08457",
    placement="at the end of the MLP in every block",
    avoid="as the only mixer: it brings the same mean to every token, and nothing of where things are",
    cases={"": {}, "scaled": {"scaled": True}},
    floor=Floor(3, 3, "R; R, W; back the same with the gradient"),
    reference="context_broadcasting",
)

"""The record of every attention of a network in one forward pass."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .layer import Layer
from .positions import Positions, locate
from .tokens import Tokens, tokens

__all__ = ["Record"]


class Record(Sequence[Layer]):
    """The attentions of one forward pass in execution order; prints as a table.

    Args:
        model: The network.

    Attributes:
        input: The images that the network was given.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.input: torch.Tensor | None = None
        self._layers: list[Layer] = []
        self._positions: list[Positions | None] | None = None

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> Layer:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"layer must lie in 0..{len(self) - 1}, got {index}")
        return self._layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    def append(self, layer: Layer) -> None:
        """Adds an attention."""
        self._layers.append(layer)

    @property
    def images(self) -> torch.Tensor:
        """The images that were the network's input."""
        if self.input is None:
            raise ValueError("nothing was captured: call the network inside the with block")
        return self.input

    @property
    def tokens(self) -> Tokens:
        """The description of the network's tokens."""
        return tokens(self.model, self.images.shape[-2:])

    def gradients(self, score: torch.Tensor, *, of: str | Sequence[str] = "probs", retain_graph: bool = True) -> None:
        """Fills `layer.grad` of every attention held.

        Args:
            score: One number, such as `logits[:, 281].sum()`: images do not see each other, so each gets its own.
            of: Parts to differentiate by: `probs`, `out`, `logits`, ...
            retain_graph: Keep what further calls need.

        Raises:
            ValueError: If the score is no single number, or was computed without gradients.
        """
        if score.numel() != 1 or not score.requires_grad:
            raise ValueError(
                "score must be one number that was computed with gradients (not under torch.no_grad), got shape "
                f"{tuple(score.shape)}, requires_grad={score.requires_grad}"
            )
        parts = (of,) if isinstance(of, str) else tuple(of)
        held = [(layer, part) for layer in self for part in parts if part in layer.raw]
        held = [(layer, part) for layer, part in held if layer.raw[part].requires_grad]
        if not held:
            raise ValueError(f"none of the attentions holds {' or '.join(parts)}: name them in keep= and layers=")
        leaves = [layer.raw[part] for layer, part in held]
        grads = torch.autograd.grad(score, leaves, allow_unused=True, retain_graph=retain_graph)
        for (layer, part), leaf, grad in zip(held, leaves, grads, strict=True):
            layer.grads[part] = torch.zeros_like(leaf) if grad is None else grad

    def has(self, layer: int) -> bool:
        """Whether the positions of an attention are known."""
        if self._positions is None:
            self._positions = locate(self)
        return self._positions[layer] is not None

    def positions(self, layer: int) -> Positions:
        """The positions of the queries and keys of an attention in the image.

        Global attention of a plain transformer is known in advance; for others the network is traced once, which costs
        five forward passes.

        Raises:
            ValueError: If its rows and columns are channels, or the network cannot be traced.
        """
        wanted = self[layer]
        found = self._positions[wanted.index] if self.has(wanted.index) and self._positions is not None else None
        if found is None:
            why = (
                "mixes channels" if wanted.kind == "channel" else "has queries or keys that are no tokens of the image"
            )
            raise ValueError(
                f"layer {wanted.index} ({wanted.path}) has no positions: its {wanted.kind} attention {why}"
            )
        return found

    def map(self, layer: int, query: tuple[float, float] | int, *, upsample: bool = False) -> torch.Tensor:
        """The attention of an image position, `(B, heads, H, W)` on the grid of the keys; zero outside its window.

        Args:
            layer: Number of the attention.
            query: `(y, x)` in pixels of the network's input, or the number of a prefix token (0: the class token).
            upsample: Enlarge to the size of the images, bilinearly.

        Raises:
            ValueError: If the place is outside the image, or there is no such prefix token.
        """
        size = self.images.shape[-2:]
        found = self.positions(layer)
        window, row = found.find(query, (size[0], size[1]))
        probs, keys = self[layer].probs.detach().float(), found.keys.index
        batch, _, heads, _, _ = probs.shape
        image, head = torch.arange(batch)[:, None], torch.arange(heads)
        chosen, at = probs[image, window, head, row], keys[image, window, head]  # (B, heads, M)
        count = found.keys.grid[0] * found.keys.grid[1]
        at = torch.where(at < 0, count, at).clamp_max(count)  # extra tokens and padding land beside the map
        result = chosen.new_zeros(batch, heads, count + 1).scatter_add_(2, at, chosen)[..., :count]
        result = result.unflatten(2, found.keys.grid)
        if upsample:
            spanned = [max(round(side * span), 1) for side, span in zip(size, found.keys.span, strict=True)]
            result = nn.functional.interpolate(result, spanned, mode="bilinear")
            missing = [max(side - there, 0) for side, there in zip(size, spanned, strict=True)]
            result = nn.functional.pad(result, (0, missing[1], 0, missing[0]))[..., : size[0], : size[1]]
        return result

    def __repr__(self) -> str:
        head = ("layer", "module", "kind", "windows", "heads", "queries", "keys", "held")
        rows: list[tuple[str, ...]] = [head]
        for layer in self:
            _, windows, heads, queries, keys = layer.shape
            held = " ".join(layer.raw) or ("reduced" if layer.reduced is not None else "-")
            numbers = (str(layer.index), layer.path, layer.kind, *map(str, (windows, heads, queries, keys)), held)
            rows.append(numbers)
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        images = tuple(self.input.shape) if self.input is not None else "none"
        prefix = self.tokens.prefix if self.input is not None else 0
        return "\n".join((f"{type(self.model).__name__}: images {images}, {prefix} prefix tokens", *lines))

"""Sentence Attention Blocks for Answer Grounding (ICCV workshops 2023, arXiv 2309.11593).

Official code: https://github.com/khoshsirat/embedding-attention-blocks (no licence file), model.py.

Differs from the official code in: `rescale` multiplies the gate by the number of channels.

Golden: tests/golden/sentenceattn_*.npz (outputs, gates, input gradients).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.utils.arguments import check_positive
from visionattn.utils.factory import FactoryKwargs

from ._condition import check_condition

__all__ = ["SentenceAttention"]


class SentenceAttention(nn.Module):
    """Scales the channels by a softmax computed from a sentence. `(B, C, H, W), (B, D) -> (B, C, H, W)`.

    The gate sums to 1 over the channels, so the map shrinks by about their number; the paper leaves it to the next
    layer to undo that.

    Args:
        channels: Width of the map.
        cond_dim: Width of the embedding of the sentence; 384 is all-MiniLM-L6-v2's, which the paper freezes.
        hidden: Width of the hidden layer, four times `cond_dim` without it.
        rescale: Multiply the gate by the number of channels, so that it is 1 on average.

    Raises:
        ValueError: If an argument is below 1.
    """

    condition_name = "sentence"
    official_keys = (
        (r"^(?:block\.)?attention\.0\.", "fc1."),
        (r"^(?:block\.)?attention\.1\.", "norm."),
        (r"^(?:block\.)?attention\.3\.", "fc2."),
    )

    def __init__(
        self,
        channels: int,
        cond_dim: int = 384,
        *,
        hidden: int | None = None,
        rescale: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = 4 * cond_dim if hidden is None else hidden
        check_positive(channels=channels, cond_dim=cond_dim, hidden=hidden)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.cond_dim = cond_dim
        self.factor = channels if rescale else 1
        self.fc1 = nn.Linear(cond_dim, hidden, **dd)
        self.norm = nn.LayerNorm(hidden, **dd)
        self.fc2 = nn.Linear(hidden, channels, **dd)

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation, as in the official code."""
        for layer in (self.fc1, self.norm, self.fc2):
            layer.reset_parameters()

    def gate(self, sentence: torch.Tensor) -> torch.Tensor:
        """The factor of each channel. `(B, D) -> (B, C)`."""
        scores = self.fc2(self.norm(self.fc1(sentence.to(self.fc1.weight.dtype))).relu())
        return self.factor * scores.softmax(1)

    def forward(self, x: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """Scales a map.

        Args:
            x: `(B, C, H, W)`.
            sentence: Embedding of the sentence of each picture, `(B, cond_dim)`.

        Raises:
            ValueError: If the sentence is missing, of another shape or not finite.
        """
        check_condition(sentence, x, "sentence", (self.cond_dim,))
        return x * self.gate(sentence).to(x.dtype)[:, :, None, None]

    def example_condition(self, x: torch.Tensor) -> torch.Tensor:
        """A condition of the shape that a map needs."""
        return x.new_zeros(x.shape[0], self.cond_dim)


CARD = Card(
    name="sentence",
    title="Sentence Attention",
    kind="plugin",
    factory=SentenceAttention,
    summary="channel gate that a sentence's embedding alone decides",
    flow="(. | <sentence> -> linear, norm, ReLU, linear -> softmax over channels) -> *",
    paper="arXiv:2309.11593",
    code="https://github.com/khoshsirat/embedding-attention-blocks",
    placement="behind each stage of an EfficientNet, before the maps go into a top-down decoder",
    avoid="without a sentence: the gate follows from its embedding alone, and the picture has no say",
    further_inputs=("sentence",),
    reference="sentence",
)

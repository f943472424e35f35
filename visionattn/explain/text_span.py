"""TextSpan: the texts that say what varies in the outputs of a head.

Interpreting CLIP's Image Representation via Text-Based Decomposition (ICLR 2024, arXiv 2310.05916).

Official code: https://github.com/yossigandelsman/clip_prs (CC BY-NC 4.0; nothing is taken from it),
compute_complete_text_set.py.

Differs from the official code in: nothing; as there, texts first lose what the outputs do not span, outputs are centred
after that, and texts keep their lengths, so that long ones win.

Golden: tests/golden/explain_textspan_*.npz.
"""

from typing import NamedTuple

import torch

from visionattn.utils.arguments import check_positive

__all__ = ["TextSpan", "text_span"]


class TextSpan(NamedTuple):
    """What `text_span` finds.

    Attributes:
        chosen: Numbers of the texts in order, `(steps,)`.
        variance: Share of the variance of the outputs that the texts up to each explain, `(steps,)`.
        reconstruction: The mean and what lies along the chosen texts, `(N, d)`.
    """

    chosen: torch.Tensor
    variance: torch.Tensor
    reconstruction: torch.Tensor


def text_span(outputs: torch.Tensor, texts: torch.Tensor, *, steps: int = 60, rank: int = 80) -> TextSpan:
    """Chooses the text along which outputs vary most, takes its direction out of outputs and texts, and so on.

    Args:
        outputs: What one head writes into the embeddings of images, `(N, d)`, see `decompose_embedding`.
        texts: Embeddings of the texts to choose from, `(M, d)`.
        steps: How many to choose. The paper takes 60 of some 3500.
        rank: Texts are first projected to the span of so many right singular vectors of the outputs.

    Raises:
        ValueError: If shapes do not fit, or there are fewer texts than steps.
    """
    check_positive(steps=steps, rank=rank)
    if outputs.ndim != 2 or texts.ndim != 2 or outputs.shape[1] != texts.shape[1]:
        raise ValueError(
            f"outputs must be (N, d) and texts (M, d), got {tuple(outputs.shape)} and {tuple(texts.shape)}"
        )
    if steps > len(texts):
        raise ValueError(f"steps must be at most the number of texts, {len(texts)}, got {steps}")
    basis = torch.linalg.svd(outputs, full_matrices=False).Vh[:rank]
    texts = texts @ basis.T @ basis
    mean = outputs.mean(0, keepdim=True)
    left = outputs - mean
    total = left.square().sum()
    chosen, variance = [], []
    for _ in range(steps):
        best = (left @ texts.T).std(0).argmax()
        direction = torch.nn.functional.normalize(texts[best], dim=0)
        left = left - (left @ direction).outer(direction)
        texts = texts - (texts @ direction).outer(direction)
        chosen.append(best)
        variance.append(1 - left.square().sum() / total)
    return TextSpan(torch.stack(chosen), torch.stack(variance), outputs - left)

"""Test-time registers: Vision Transformers Don't Need Trained Registers (NeurIPS 2025, arXiv 2506.08010).

Official code: https://github.com/nickjiang2378/test-time-registers (no licence file at its root), shared/hook_fn.py.

Differs from the official code in:
- all images of a batch, not the first alone;
- `rule="neuron"`, the paper's: a register gets the largest activation of each neuron; `layer` is the code's: one number
  for all neurons of a layer;
- a network's own registers are no patches;
- outliers are told from the median of the norms unless a threshold is given: 30 holds for the authors' networks only.

Golden: tests/golden/explain_registers_*.npz.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from visionattn.utils.arguments import check_choice, check_positive

__all__ = ["find_register_neurons", "test_time_registers"]

_PATCHES = ("zero", "mean", "only_outliers", "same")


@contextmanager
def test_time_registers(
    model: nn.Module,
    neurons: Mapping[int, Sequence[int]],
    *,
    count: int = 1,
    rule: str = "neuron",
    patches: str = "zero",
    scale: float = 1.0,
) -> Iterator[None]:
    """Adds registers to a vision transformer trained without them, inside a `with` block.

    Empty tokens follow the patches; what chosen neurons do at outlier patches goes to them. They are taken off before
    the last norm.

    Args:
        model: A `VisionTransformer` of timm's without rotary positions.
        neurons: Number of a block -> its hidden units, see `find_register_neurons`.
        count: Number of registers.
        rule: `neuron` or `layer`.
        patches: What the neurons do at the patches: `zero`, their `mean`, `only_outliers` (above the mean by a standard
            deviation) become the mean, or the `same` as before.
        scale: Of the registers' activations.

    Raises:
        ValueError: If an argument is out of range or the network is another.
    """
    check_positive(count=count)
    check_choice("rule", rule, ("neuron", "layer"))
    check_choice("patches", patches, _PATCHES)
    network = _checked(model)
    for number, units in neurons.items():
        width = network.blocks[number].mlp.fc1.out_features if 0 <= number < len(network.blocks) else 0
        if not units or any(not 0 <= unit < width for unit in units):
            known = f"0..{len(network.blocks) - 1}"
            raise ValueError(f"neurons must be units of the blocks {known}, got {list(units)} of block {number}")
    prefix = int(network.num_prefix_tokens)
    embed = network._pos_embed

    def longer(x: torch.Tensor) -> torch.Tensor:
        tokens = embed(x)
        return torch.cat((tokens, tokens.new_zeros(len(tokens), count, tokens.shape[2])), 1)

    def shift(units: torch.Tensor) -> Any:
        def hook(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            chosen = out[..., units]
            changed = _moved(chosen, prefix, count, rule, patches, scale)
            return out.index_copy(2, units, changed)

        return hook

    handles = [
        network.blocks[number].mlp.act.register_forward_hook(shift(torch.as_tensor(units)))
        for number, units in neurons.items()
    ]
    handles.append(network.norm.register_forward_pre_hook(lambda module, args: (args[0][:, :-count],)))
    network._pos_embed = longer
    try:
        yield
    finally:
        del network._pos_embed  # the class's own is seen again
        for handle in handles:
            handle.remove()


def find_register_neurons(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    top: int = 10,
    layer: int = -1,
    threshold: float | None = None,
    up_to: int | None = None,
) -> dict[int, list[int]]:
    """The hidden units most active at tokens with outlier norms, as `test_time_registers` takes them.

    Args:
        model: A `VisionTransformer` of timm's.
        batches: Images.
        top: Number of units.
        layer: Number of the block behind which norms are looked at.
        threshold: From which norm on a token is an outlier; by default the image's median and six times the median
            deviation from it.
        up_to: Last block whose units count.

    Raises:
        ValueError: If no image has outliers, or the network is another.
    """
    check_positive(top=top)
    network = _checked(model)
    hidden: dict[int, torch.Tensor] = {}
    norms: dict[str, torch.Tensor] = {}
    handles = [
        block.mlp.act.register_forward_hook(lambda module, args, out, number=number: hidden.update({number: out}))
        for number, block in enumerate(network.blocks)
        if up_to is None or number <= up_to
    ]
    end = network.blocks[layer]
    handles.append(end.register_forward_hook(lambda module, args, out: norms.update(last=out.norm(dim=2))))
    total: dict[int, torch.Tensor] = {}
    images = 0
    try:
        with torch.no_grad():
            for x in batches:
                model(x)
                outliers = _outliers(norms["last"], threshold)
                found = outliers.any(1)
                images += int(found.sum())
                weight = outliers[found].to(x.dtype) / outliers[found].sum(1, keepdim=True)
                for number, values in hidden.items():
                    means = torch.einsum("bt,btc->c", weight, values[found].abs())
                    total[number] = total.get(number, 0) + means
    finally:
        for handle in handles:
            handle.remove()
    if not images:
        raise ValueError("no image has tokens with outlying norms: lower the threshold, or look behind another layer")
    numbers = sorted(total)
    scores = torch.stack([total[number] for number in numbers])
    best = scores.flatten().topk(min(top, scores.numel())).indices.tolist()
    chosen: dict[int, list[int]] = {}
    for index in best:
        row, unit = divmod(index, scores.shape[1])
        chosen.setdefault(numbers[row], []).append(unit)
    return {number: sorted(units) for number, units in sorted(chosen.items())}


def _checked(model: nn.Module) -> Any:
    network: Any = model
    if not all(hasattr(network, name) for name in ("_pos_embed", "blocks", "norm")) or hasattr(network, "rope"):
        raise ValueError(f"model must be a VisionTransformer of timm's, got {type(model).__name__}")
    if not all(hasattr(getattr(block, "mlp", None), "act") for block in network.blocks):
        raise ValueError("every block must have an mlp with the activation `act`")
    return network


def _outliers(norms: torch.Tensor, threshold: float | None) -> torch.Tensor:
    if threshold is not None:
        return norms > threshold
    median = norms.median(1, keepdim=True).values
    return norms > median + 6 * (norms - median).abs().median(1, keepdim=True).values


def _moved(chosen: torch.Tensor, prefix: int, count: int, rule: str, patches: str, scale: float) -> torch.Tensor:
    """Activations of the chosen units `(B, T, units)` with those of the patches moved to the registers."""
    axes = (1, 2) if rule == "layer" else (1,)
    top, bottom = chosen.amax(axes, keepdim=True), chosen.amin(axes, keepdim=True)
    signed = torch.where(top > -bottom, top, bottom)  # of the largest magnitude
    extra, inside = chosen[:, :prefix], chosen[:, prefix:-count]
    mean = inside.mean(1, keepdim=True)
    if patches == "zero":
        inside = torch.zeros_like(inside)
    elif patches == "mean":
        inside = mean.expand_as(inside)
    elif patches == "only_outliers":
        inside = torch.where(inside > mean + inside.std(1, keepdim=True), mean, inside)
    registers = (scale * signed).expand(len(chosen), count, chosen.shape[2])
    return torch.cat((extra, inside, registers), 1)

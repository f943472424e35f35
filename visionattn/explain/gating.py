"""What our mechanisms without probabilities do: the factors of gates, and the matrices of mixers."""

import inspect
from typing import Any

import torch
from torch import nn

from ._evaluation import evaluating

__all__ = ["gates", "mixer_weights", "spatial_gates"]


def gates(model: nn.Module, x: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """The factors of every gating block, by block name and factor name.

    Blocks of ours say them by their method `gates`; of timm's (squeeze-and-excitation, ECA, CBAM and others that end in
    a module `gate`) what that module gives is taken.

        gates(model, x)["layer2.0.attn"]["spatial"]  # (B, 1, H, W)

    Factors broadcast to the block's map `(B, C, H, W)`: `channel` is `(B, C, 1, 1)`, `spatial` `(B, 1, H, W)`, `rows`
    `(B, C, H, 1)`, `columns` `(B, C, 1, W)`. Where they are not simply multiplied, `gate` is what the map is multiplied
    by in the end.

    Args:
        model: The network; it computes in evaluation mode.
        x: Images `(B, C, H, W)`.

    Raises:
        ValueError: If the network has no such block.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if callable(getattr(module, "gates", None)):

            def note(module: Any, args: Any, kwargs: Any, name: str = name) -> None:
                factors = module.gates(*args, **kwargs)
                if isinstance(factors, dict):  # other mechanisms call other things so
                    found[name] = {key: value.detach() for key, value in factors.items()}

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        elif type(module).__module__.startswith("timm.layers") and _is_activation(getattr(module, "gate", None)):

            def look(module: Any, args: Any, out: Any, name: str = name) -> None:
                factor = _factor(out)
                if factor is not None:
                    found[name] = {"channel" if factor.shape[2:] == (1, 1) else "spatial": factor.detach()}

            gate: Any = module.gate
            handles.append(gate.register_forward_hook(look))
    with evaluating(model), torch.no_grad():
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
    if not found:
        raise ValueError(f"{type(model).__name__} has no gating blocks: use explain.cam or explain.capture")
    return found


def spatial_gates(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The factors that have places in the image, the mean over channels, by block and factor. `-> (B, h, w)` each.

    What a factor does not distinguish has the size 1, such as the width of `rows`.

    Args:
        model: As for `gates`.
        x: As there.

    Raises:
        ValueError: If the network has no such block, or all their factors are of channels alone.
    """
    found = {
        f"{name} {key}": factor.float().mean(1)
        for name, factors in gates(model, x).items()
        for key, factor in factors.items()
        if factor.shape[2:] != (1, 1)
    }
    if not found:
        raise ValueError("the gates of this network are of channels: explain.gates gives them as numbers")
    return found


def _is_activation(module: Any) -> bool:
    return isinstance(module, nn.Module) and not any(True for _ in module.parameters())


def _factor(gate: Any) -> torch.Tensor | None:
    if not isinstance(gate, torch.Tensor):
        return None
    if gate.ndim == 3 and gate.shape[1] == 1:  # ECA convolves along the channels
        gate = gate.transpose(1, 2).unsqueeze(3)
    return gate if gate.ndim == 4 else None


def mixer_weights(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each token takes from each in every mixer of ours that can say it, by the mixer's name in the network.

    Also of those that have no probabilities to capture: linear attention, convolutions, pooling, recurrences. Most have
    `(B, heads, N, M)`; the mixer's `weights` says what stands in their place and what is left out.

    Args:
        model: The network; it computes in evaluation mode.
        x: Images `(B, C, H, W)`.

    Raises:
        ValueError: If the network has no such mixer.
    """
    found: dict[str, torch.Tensor] = {}
    mixers = [(n, m) for n, m in model.named_modules() if _says_weights(m)]
    for name, mixer in mixers:
        _listen(name, mixer, found)
    with evaluating(model), torch.no_grad():
        try:
            model(x)
        finally:
            for _, mixer in mixers:
                vars(mixer).pop("forward_tokens", None)
                vars(mixer).pop("forward", None)
    if not found:
        raise ValueError(f"{type(model).__name__} has no mixers that say their weights: use explain.capture")
    return found


def _says_weights(module: nn.Module) -> bool:
    """Whether `weights` needs no more than the tokens."""
    if not type(module).__module__.startswith("visionattn.mixers") or not callable(getattr(module, "weights", None)):
        return False
    weights: Any = module.weights
    needed = [p for p in inspect.signature(weights).parameters.values() if p.default is p.empty]
    return len(needed) == 1


def _listen(name: str, mixer: Any, found: dict[str, torch.Tensor]) -> None:
    """Until its own methods are seen again, a mixer says its weights whenever it runs."""
    known = inspect.signature(mixer.weights).parameters

    def note(tokens: torch.Tensor, grid: tuple[int, int] | None, prefix: int) -> None:
        if not prefix and grid is not None and tokens.ndim == 3:
            tokens = tokens.unflatten(1, grid)
        places = {"grid": grid, "prefix": prefix} if prefix and "prefix" in known else {}
        found[name] = mixer.weights(tokens, **places).detach()

    inner = "forward_tokens" if hasattr(mixer, "forward_tokens") else "forward"
    own = getattr(mixer, inner)

    def listening(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        places = dict(zip(("grid", "prefix"), args, strict=False)) | kwargs if inner == "forward_tokens" else {}
        note(tokens, places.get("grid"), places.get("prefix", 0))
        return own(tokens, *args, **kwargs)

    setattr(mixer, inner, listening)

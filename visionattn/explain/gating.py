"""The factors of gating attention: the positions and channels that plug-ins emphasise."""

from typing import Any

import torch
from torch import nn

__all__ = ["gates"]


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
    trained = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module in trained:
            module.training = True
    if not found:
        raise ValueError(f"{type(model).__name__} has no gating blocks: use explain.cam or explain.capture")
    return found


def _is_activation(module: Any) -> bool:
    return isinstance(module, nn.Module) and not any(True for _ in module.parameters())


def _factor(gate: Any) -> torch.Tensor | None:
    if not isinstance(gate, torch.Tensor):
        return None
    if gate.ndim == 3 and gate.shape[1] == 1:  # ECA convolves along the channels
        gate = gate.transpose(1, 2).unsqueeze(3)
    return gate if gate.ndim == 4 else None

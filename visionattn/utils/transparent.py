"""Wrapper modules that do not appear in the names of the state dict."""

from functools import partial
from typing import Any

from torch import nn

__all__ = ["hide_child"]


def hide_child(module: nn.Module, child: str) -> None:
    """Leaves the name of a child out of the state dict of a module: `child.weight` is saved and loaded as `weight`.

    Args:
        module: The one around it. The names of its other children and of its own parameters and buffers must not be
            among those of the child.
        child: The child's name.
    """
    module.register_state_dict_post_hook(partial(_hide, child))
    module.register_load_state_dict_pre_hook(partial(_reveal, child))


def _hide(child: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    inside = f"{prefix}{child}."
    moved = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(inside)}
    state_dict.update({prefix + key.removeprefix(inside): value for key, value in moved.items()})


def _reveal(child: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    others = {*module._modules, *module._parameters, *module._buffers} - {child}
    names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
    moved = {name: state_dict.pop(prefix + name) for name in names if name.partition(".")[0] not in others}
    state_dict.update({f"{prefix}{child}.{name}": value for name, value in moved.items()})

"""The input check of all token mixers."""

from functools import wraps
from typing import Any

__all__ = ["check_maps"]


def check_maps(factory: Any) -> None:
    """Makes a token mixer's class refuse inputs other than maps `(B, H, W, C)`, saying how to wrap it.

    The card of a mixer calls this, so that none needs lines of its own and none is without. The check is part of
    `forward`, where compilers and exporters resolve it: a hook would stay in their graphs.

    Args:
        factory: The class, or a partial of it; functions are passed over.
    """
    cls = getattr(factory, "func", factory)
    owner = next((c for c in getattr(cls, "__mro__", ()) if "forward" in vars(c)), None)
    if owner is None or owner.__module__.startswith("torch.") or hasattr(owner.forward, "checks_maps"):
        return
    if getattr(cls, "takes_tokens", False):  # says so itself
        return
    forward = owner.forward

    @wraps(forward)
    def checked(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if x.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} takes maps (B, H, W, C), got {tuple(x.shape)}: "
                "visionattn.mixers.Tokens(mixer, prefix=...) makes it take tokens (B, N, C)"
            )
        return forward(self, x, *args, **kwargs)

    vars(checked)["checks_maps"] = True
    owner.forward = checked

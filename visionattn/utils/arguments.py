"""Checks of arguments that many modules share; errors name the argument, what was given and what is allowed."""

from collections.abc import Collection, Sequence

__all__ = ["check_choice", "check_heads", "check_odd", "check_positive", "pair"]


def check_positive(**values: int) -> None:
    """Raises unless every argument, given by its name, is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_odd(**values: int) -> None:
    """Raises unless every argument, given by its name, is a positive odd number."""
    for name, value in values.items():
        if value < 1 or value % 2 == 0:
            raise ValueError(f"{name} must be a positive odd number, got {value}")


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Raises unless an argument is one of the values allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_heads(dim: int, num_heads: int) -> None:
    """Raises unless a width splits into a number of heads."""
    if dim < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim, got dim={dim}, num_heads={num_heads}")


def pair(name: str, value: int | Sequence[int], *, least: int = 1) -> tuple[int, int]:
    """Height and width from one integer for both or from two.

    Args:
        name: What an error calls them.
        value: The integer or two.
        least: The least that each may be.

    Raises:
        ValueError: If there are more or fewer than two, or one is too small.
    """
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or min(values) < least:
        raise ValueError(f"{name} must be one integer or two (height, width), at least {least}, got {value}")
    return values[0], values[1]

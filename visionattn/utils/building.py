"""Building what a config names: an entry of an open table, with errors that list the known entries and arguments."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["build", "hint"]


def build(table: Any, config: Mapping[str, Any], what: str, **offered: Any) -> Any:
    """Calls the entry of a table that a config names by its `type`.

    Args:
        table: A registry of mmengine's, or a mapping of names to classes or functions.
        config: `type`, the name of an entry (or the class itself), and the arguments.
        what: What to call it in messages, such as `loss`.
        **offered: Arguments that the entry gets if it names them; a config may not set them.

    Raises:
        ValueError: If the type or an argument is unknown, one is missing, or the entry refuses a value.
    """
    arguments = dict(config)
    kind = arguments.pop("type", None)
    known: Mapping[str, Callable[..., Any]] = getattr(table, "module_dict", table)
    entry = kind if callable(kind) else known.get(str(kind))
    if entry is None:
        raise ValueError(f"{what} type must be one of {', '.join(known)}, got {kind!r}{hint(str(kind), known)}")
    name = getattr(kind, "__name__", kind)
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(entry).parameters
    except ValueError:  # of a class written in C
        parameters = {}
    takes_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    own = sorted(named - offered.keys())
    unknown = sorted(key for key in arguments if key in offered or not (takes_any or key in named))
    if unknown:
        raise ValueError(
            f"{what} {name} takes no {', '.join(unknown)} here; it takes {', '.join(own) or 'no arguments'}"
            f"{hint(unknown[0], own)}"
        )
    try:
        return entry(**{key: value for key, value in offered.items() if key in named}, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"cannot build {what} {name}({_written(arguments)}): {error}") from error


def hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known names that are close to one, or nothing."""
    close = difflib.get_close_matches(name, list(known))
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())

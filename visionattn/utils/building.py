"""Builds the registry entry that a config names, with errors that list the known entries and arguments."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

__all__ = ["build", "check", "did_you_mean"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build(table: Any, config: Mapping[str, Any], what: str, **offered: Any) -> Any:
    """Calls the registry entry that a config names by `type`.

    Args:
        table: A registry of mmengine's, or a mapping of names to classes or functions.
        config: `type`, the name of an entry (or the class itself), and the arguments.
        what: What to call it in messages, such as `loss`.
        **offered: Arguments that the entry gets if it names them; a config may not set them.

    Raises:
        ValueError: If the type or an argument is unknown, one is missing, or the entry refuses a value.
    """
    entry = check(table, config, what, offered)
    arguments = {key: value for key, value in config.items() if key != "type"}
    named = _parameters(entry)[0]
    try:
        return entry(**{key: value for key, value in offered.items() if key in named}, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"cannot build {what} {_name(config)}({written}): {error}") from error


def check(table: Any, config: Mapping[str, Any], what: str, offered: Iterable[str] = ()) -> Callable[..., Any]:
    """The registry entry that a config names, after checking its arguments.

    Args:
        table: As for `build`.
        config: As for `build`.
        what: As for `build`.
        offered: Names of arguments that a config may not set.

    Raises:
        ValueError: If the type or an argument is unknown.
    """
    kind = config.get("type")
    known: Mapping[str, Callable[..., Any]] = getattr(table, "module_dict", table)
    entry = kind if callable(kind) else known.get(str(kind))
    if entry is None:
        raise ValueError(f"{what} type must be one of {', '.join(known)}, got {kind!r}{did_you_mean(str(kind), known)}")
    named, takes_any = _parameters(entry)
    own = sorted(named - set(offered))
    unknown = sorted(
        key for key in config if key != "type" and key not in own and not (takes_any and key not in offered)
    )
    if unknown:
        raise ValueError(
            f"{what} {_name(config)} takes no {', '.join(unknown)} here; it takes {', '.join(own) or 'no arguments'}"
            f"{did_you_mean(unknown[0], own)}"
        )
    return entry


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known names that are close to one, or nothing."""
    close = difflib.get_close_matches(name, sorted(known))
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _name(config: Mapping[str, Any]) -> str:
    return getattr(config["type"], "__name__", str(config["type"]))


def _parameters(entry: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of an entry's arguments, and whether it takes any others too.

    What a class hands on to its parents (`**kwargs`) are their optional arguments.
    """
    own: Collection[inspect.Parameter]
    try:
        own = inspect.signature(entry).parameters.values()
    except ValueError:  # of a class written in C
        return set(), True
    named = {p.name for p in own if p.kind in _NAMED}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in own)
    if not open_ended or not isinstance(entry, type):
        return named, open_ended
    for parent in entry.__mro__[1:]:
        if "__init__" not in vars(parent) or parent is object:
            continue
        own = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
        named |= {p.name for p in own if p.kind in _NAMED and p.default is not p.empty}
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return named, False
    return named, True

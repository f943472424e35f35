"""`key=value` on the command line as Python values."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["StoreSettings", "format_setting", "parse_value"]

_CONSTANTS = {"true": True, "false": False, "none": None}
_BRACKETS = {"[": "]", "(": ")"}


class StoreSettings(argparse.Action):
    """Collects `key=value` arguments into a dictionary."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, values: Any, *_: Any) -> None:
        """Adds the values of the option."""
        settings = dict(getattr(options, self.dest) or {})
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                parser.error(f"argument {'/'.join(self.option_strings)}: {text!r} is not of the form KEY=VALUE")
            try:
                settings[key] = parse_value(value)
            except ValueError as error:
                parser.error(f"argument {'/'.join(self.option_strings)}: {key}: {error}")
        setattr(options, self.dest, settings)


def parse_value(text: str) -> Any:
    """Parses a text: a number, true, false, none, a list `a,b` or `[a,b]`, a tuple `(a,b)`, else the text itself.

    Lists and tuples may be nested; quotes keep a text as it is: `"'1,2'"`.

    Raises:
        ValueError: If brackets do not match.
    """
    text = text.strip()
    try:
        parts = _split(text)
    except ValueError:
        if text[0] in _BRACKETS:
            raise
        return text  # a name such as `holiday (1.jpg`
    if len(parts) > 1:
        return [parse_value(part) for part in parts]
    if text[:1] in _BRACKETS:
        if text[-1:] != _BRACKETS[text[0]]:
            raise ValueError(f"brackets do not match in {text!r}")
        inner = text[1:-1].strip().removesuffix(",")
        values = [parse_value(part) for part in _split(inner)] if inner else []
        return tuple(values) if text[0] == "(" else values
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return _number(text)


def format_setting(key: str, value: Any) -> str:
    """Formats a setting as `key=value`, which `StoreSettings` reads."""
    return f"{key}={_format(value)}"


def _format(value: Any) -> str:
    if isinstance(value, list | tuple):
        inner = ",".join(map(_format, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    text = str(value)
    # Text that would be read as something else is put between quotes.
    if isinstance(value, str) and (parse_value(text) != value or set(text) & set(",[]()")):
        return f'"{text}"' if "'" in text else f"'{text}'"
    return text


def _number(text: str) -> Any:
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    for kind in (int, float):
        # Python's numbers may hold underscores, names of files too.
        if re.fullmatch(r"[-+]?(\d[\d.]*|\.\d+)(e[-+]?\d+)?|[-+]?(inf|nan)", text, re.IGNORECASE):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _split(text: str) -> Sequence[str]:
    """Splits at the commas outside brackets and quotes."""
    parts, expected, quote, start = [], [], "", 0
    for position, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and not text[start:position].strip(" [("):
            quote = sign
        elif sign in _BRACKETS:
            expected.append(_BRACKETS[sign])
        elif sign in _BRACKETS.values():
            if not expected or expected.pop() != sign:
                raise ValueError(f"brackets do not match in {text!r}")
        elif sign == "," and not expected:
            parts.append(text[start:position])
            start = position + 1
    if expected:
        raise ValueError(f"brackets do not match in {text!r}")
    return [*parts, text[start:]]

"""Generated text between two markers of a hand-written file."""

__all__ = ["put_between"]


def put_between(text: str, start: str, end: str, new: str) -> str:
    """Replaces the text between two marker lines.

    Args:
        text: The whole text.
        start: The line before.
        end: The line after.
        new: What goes between them; it ends in a line break.

    Raises:
        ValueError: If either line is missing.
    """
    before, _, rest = text.partition(f"{start}\n")
    _, found, after = rest.partition(f"{end}\n")
    if not found:
        raise ValueError(f"the text must have the lines {start} and {end}; what is generated goes between them")
    return f"{before}{start}\n{new}{end}\n{after}"

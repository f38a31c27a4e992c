"""Texts from elsewhere, such as the name of a run, made fit to be shown."""

from __future__ import annotations

__all__ = ["sanitize", "truncate_middle"]


def sanitize(text: str) -> str:
    """Return a text with `?` for whatever is not printable, such as a terminal's control codes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def truncate_middle(text: str, length: int) -> str:
    """Return a text of at most `length` characters, its middle cut out where it is longer.

    Names differ most at their ends.
    """
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"

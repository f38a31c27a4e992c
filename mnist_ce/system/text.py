"""Text for messages: safe to print, short, in one line, with suggestions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

CONTROL_CHARACTERS = r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"  # and what is not UTF-8

_REASONS = (
    (r"(Input|String) should (be|have|match)", "must be"),
    (r"a valid integer.*", "a whole number"),
    (r"a valid number.*", "a number"),
    (r"a valid string, unable.*", "a text in UTF-8"),
    (r"a valid string.*", "a text"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid (tuple|list).*", "a list, such as 100,50"),
    (r"a valid dictionary or instance of \w+", "a table"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"greater than (?=\S)", "above "),
    (r"less than (?=\S)", "below "),
    (r"at least 1 character", "not empty"),
)


def one_line(error: BaseException) -> str:
    """Return an exception's reason in one line, without a path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def sanitize(text: str) -> str:
    """Return a text with `?` for whatever is not printable, such as a terminal's control codes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean …?` with the most similar name; empty where none is similar.

    What is the same up to the last `.`, `-` or `/` does not count: `a.lr` is not like `a.name`.
    """

    def likeness(other: str) -> float:
        (head, tail), (its_head, its_tail) = (
            re.split(r"([^./-]*)$", text, maxsplit=1)[:2] for text in (name, other)
        )
        pair = (tail, its_tail) if head == its_head else (name, other)
        return SequenceMatcher(None, *pair).ratio() / (0.7 if len(pair[0]) > 3 else 0.6)

    near = max(names, key=likeness, default="")
    return f"; did you mean {sanitize(near)}?" if near and likeness(near) >= 1 else ""


def plain_reason(message: str) -> str:
    """Return pydantic's reason why a value is wrong in the words of all messages."""
    for pattern, text in _REASONS:
        message = re.sub(pattern, text, message)
    return message


def first_problem(error: Any, *place: str) -> str:  # noqa: ANN401 - a `ValidationError`
    """Return key and reason of the first value that pydantic refuses, below a place."""
    detail = error.errors(include_url=False)[0]
    key = sanitize(".".join(map(str, (*place, *detail["loc"]))))
    return f"{key} {plain_reason(detail['msg'])}"


def percent_hint(value: object) -> str:
    """Return `; did you mean 0.9?` for 90 where a fraction is expected; else nothing."""
    try:
        number = float(str(value).removesuffix("%"))
    except ValueError:
        return ""
    return f"; did you mean {number / 100:g}?" if 1 < number <= 100 else ""


def percent(fraction: float, decimals: int = 1) -> str:
    """Return a fraction in percent; one below 1 is never rounded up to 100 %."""
    if 1 - 0.5 * 10 ** -(decimals + 2) <= fraction < 1:
        return f"> {100 - 10**-decimals:.{decimals}f} %"
    return f"{100 * fraction:.{decimals}f} %"


def certainty(probability: float) -> str:
    """Return a probability as people read it: no network is as sure as its floats may be."""
    return percent(min(probability, 1 - 1e-9))


def short(value: Any) -> str:  # noqa: ANN401
    """Return a value as tables show it: a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def truncate_middle(text: str, length: int) -> str:
    """Cut out the middle of a text of more than `length` characters: names differ at the ends."""
    tail = (length - 1) // 2
    cut = f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
    return text if len(text) <= length else cut

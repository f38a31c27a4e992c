"""A config as TOML with the meaning of each key, and a list of the shipped recipes."""

from __future__ import annotations

import textwrap
import tomllib
from pathlib import Path

import tomli_w

from mnist_ce.config import Config, Section, shipped_configs

_WIDTH = 80


def config_text(config: Config) -> str:
    """Return a whole config as TOML, each key under its meaning, after a list of the recipes.

    The meanings and the list are comments; reading the text gives the config.
    """
    names = recipe_summaries()
    width = max(map(len, names), default=0)
    recipes = [
        _comment(f"{name:<{width}}  {summary}", hanging=width + 2)
        for name, summary in names.items()
    ]
    parts = ["# Shipped recipes, for: mnist-ce train --config NAME", *recipes]
    for name in Config.model_fields:
        section: Section = getattr(config, name)
        parts += ["", _comment(type(section).__doc__ or ""), f"[{name}]"]
        for key, field in type(section).model_fields.items():
            value = tomli_w.dumps({key: section.model_dump(mode="json")[key]}).strip()
            parts += [_comment(field.description or ""), _in_one_line(key, value)]
    return "\n".join(parts) + "\n"


def recipe_summaries() -> dict[str, str]:
    """Return the first sentence of each shipped recipe's opening comment, by name."""
    return {name: _summary(path) for name, path in shipped_configs().items()}


def _summary(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    sentence, stop, _ = " ".join(lines).partition(". ")
    return sentence + stop.strip()


def _in_one_line(key: str, value: str) -> str:
    if "\n" not in value:
        return value
    # tomli_w writes each element of a list in a line of its own.
    return f"{key} = [{', '.join(map(str, tomllib.loads(value)[key]))}]"


def _comment(text: str, hanging: int = 0) -> str:
    lines = textwrap.wrap(text, _WIDTH - 2, subsequent_indent=" " * hanging, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)

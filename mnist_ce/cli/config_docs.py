"""A config as TOML with the meaning of each key, and a list of the shipped recipes."""

from __future__ import annotations

import itertools
import textwrap
import tomllib
from pathlib import Path

import tomli_w

from mnist_ce.config import Config, Section, shipped_configs


def config_text(config: Config) -> str:
    """Return a whole config as TOML, each key under its meaning, after a list of the recipes.

    The meanings and the list are comments; reading the text gives the config.
    """
    recipes = shipped_configs()
    width = max(map(len, recipes), default=0)
    parts = ["# Shipped recipes, for: mnist-ce train --config NAME"]
    for name, path in recipes.items():
        parts.append(_comment(f"{name:<{width}}  {_summary(path)}", hanging=width + 2))
    for name in Config.model_fields:
        section: Section = getattr(config, name)
        parts += ["", _comment(type(section).__doc__ or ""), f"[{name}]"]
        for key, field in type(section).model_fields.items():
            value = tomli_w.dumps({key: section.model_dump(mode="json")[key]}).strip()
            if "\n" in value:  # tomli_w writes each element of a list in a line of its own
                value = f"{key} = [{', '.join(map(str, tomllib.loads(value)[key]))}]"
            parts += [_comment(field.description or ""), value]
    return "\n".join(parts) + "\n"


def _summary(path: Path) -> str:
    """Return the first sentence of a recipe's opening comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    sentence, stop, _ = " ".join(line.lstrip("# ") for line in comment).partition(". ")
    return sentence + stop.strip()


def _comment(text: str, hanging: int = 0) -> str:
    lines = textwrap.wrap(text, 78, subsequent_indent=" " * hanging, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)

"""Makes docs/lessons.ipynb from docs/lessons.md: each command becomes a cell to run.

    python -m scripts.make_notebook

The output of the commands is left out.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def notebook(text: str) -> str:
    """Return a notebook of the Markdown text, its console blocks as cells without output."""
    cells: list[dict[str, Any]] = []
    for place, part in enumerate(re.split(r"^```console\n(.*?)^```\n", text, flags=re.M | re.S)):
        source, kind = part.strip(), "markdown"
        if place % 2:
            commands = re.findall(r"^\$ (.*)$", part, re.MULTILINE)
            source, kind = "\n".join(f"!{command}" for command in commands), "code"
        cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": source}
        cells.append(cell | ({"execution_count": None, "outputs": []} if place % 2 else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content: dict[str, Any] = {"cells": cells, "metadata": {"kernelspec": kernel}}
    content |= {"nbformat": 4, "nbformat_minor": 4}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Make the notebook."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args()
    lessons = (DOCS / "lessons.md").read_text(encoding="utf-8")
    (DOCS / "lessons.ipynb").write_text(notebook(lessons), encoding="utf-8")


if __name__ == "__main__":
    main()

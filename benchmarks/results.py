"""The accuracy table of docs/results.md, remade from groups of runs that `mnist-ce tune` trains.

    MNIST_CE_DATA_DIR=… python -m benchmarks.results --output runs --existing old-runs \
        --write docs/results.md

What is missing of the recipes and seeds is trained, finished runs are reused. Of long recipes, such
as `best`, only runs that exist are shown, of the folders that --existing names. The table takes the
place of what stands between the two marks in the file. Training seconds run from the first step to
the final weights, distortion and averaging included.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.common import Format, argument_parser, mean_deviation, print_table
from mnist_ce.config import shipped_configs
from mnist_ce.runs.groups import RunGroup, group_runs
from mnist_ce.runs.run_dir import RunDir, list_runs

RECIPES = ("default", "fast", "99", "is-it-a-7")
LONG_RECIPES = ("best", "world")
MARKS = ("<!-- accuracy: begin -->\n", "<!-- accuracy: end -->")
COLUMNS: dict[str, Format] = {
    "recipe": str,
    "command": "`{}`".format,
    "epochs": str,
    "n": str,
    "test accuracy": mean_deviation(3, 100, " %"),
    "of each seed": lambda values: ", ".join(f"{100 * value:.2f}" for value in values),
    "test loss": mean_deviation(4),
    "training seconds": mean_deviation(1),
}


def main() -> None:
    """Train what is missing and print the table, or write it into a file."""
    parser = argument_parser(__doc__)
    parser.add_argument("--recipes", nargs="+", default=[r for r in RECIPES if r in known()])
    parser.add_argument("--seeds", default="0-2", help="for example 0-4")
    parser.add_argument("--output", type=Path, default=Path("checkpoints"), help="keeps the runs")
    parser.add_argument("--existing", type=Path, nargs="*", default=[], help="more folders of runs")
    parser.add_argument("--write", type=Path, help="the file whose table is replaced")
    parser.add_argument("options", nargs="*", help="after --: more options of tune")
    options = parser.parse_args()
    before, after = ("", "") if options.write is None else marked(options.write)
    groups = train(options.recipes, options.seeds, options.output, options.options)
    for folder in (options.output, *options.existing):
        found = group_runs((run.name, record) for run, record in list_runs(folder))
        groups += [group for group in found if group.records[0].recipe in LONG_RECIPES]
    first = groups[0].records[0]
    title = (
        f"On the test images, mean ± standard deviation over n seeds; {first.device}, "
        f"{first.threads} threads."
    )
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_table(title, COLUMNS, list(map(row, groups)), as_json=options.json)
    if options.write is None:
        print(text.getvalue(), end="")
    else:
        options.write.write_text(f"{before}{MARKS[0]}{text.getvalue()}{MARKS[1]}{after}")


def known() -> set[str]:
    """Return the names of the shipped recipes."""
    return set(shipped_configs())


def marked(path: Path) -> tuple[str, str]:
    """Return the text before and after the marked part of a file."""
    before, begin, rest = path.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise SystemExit(f"{path} has not the marks {MARKS[0].strip()} and {MARKS[1]}")
    return before, after


def train(recipes: list[str], seeds: str, output: Path, more: list[str]) -> list[RunGroup]:
    """Return the groups of the recipes, after training what is missing."""
    command = ["tune", "--config", ",".join(recipes), "--seeds", seeds, "--output", str(output)]
    command += ["--json", *more]
    print(f"mnist-ce {shlex.join(command)}", file=sys.stderr)
    printed = subprocess.check_output([sys.executable, "-m", "mnist_ce", *command])
    names = [name for group in json.loads(printed)["groups"] for name in group["runs"]]
    records = [(name, RunDir(output / name).read_record()) for name in names]
    return group_runs((name, record) for name, record in records if record is not None)


def row(group: RunGroup) -> tuple[object, ...]:
    """Return the raw values of a group's line."""
    first = group.records[0]
    values = {
        key: [record[key] for record in group.records]
        for key in ("test_accuracy", "test_loss", "train_seconds")
    }
    command = f"mnist-ce train --config {first.recipe} --seed N"
    accuracies = values["test_accuracy"]
    return (
        *(first.recipe, command, first.epochs_done, len(group.names), accuracies, accuracies),
        *(values["test_loss"], values["train_seconds"]),
    )


if __name__ == "__main__":
    main()

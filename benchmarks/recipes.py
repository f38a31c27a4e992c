"""Test accuracy and training time of recipes, trained with several seeds by the command itself.

    MNIST_CE_DATA_DIR=… python -m benchmarks.recipes fast 99 --seeds 0,1,2 --output runs

Runs are kept as `<output>/<recipe>-<seed>` and finished ones are reused, so a table of long recipes
can be made in parts. Training seconds run from the first step to the final weights, distortion and
averaging included; wall seconds are those of the whole process.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Format, argument_parser, mean_deviation, print_table
from mnist_ce.config import resolve_config
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir

COLUMNS: dict[str, Format] = {
    "recipe": str,
    "command": "`{}`".format,
    "epochs": str,
    "n": str,
    "test accuracy": mean_deviation(3, 100, " %"),
    "of each seed": lambda values: ", ".join(f"{100 * value:.2f}" for value in values),
    "test loss": mean_deviation(4),
    "training seconds": mean_deviation(1),
    "wall seconds": mean_deviation(1),
}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("recipes", nargs="+", metavar="CONFIG", help="recipes or TOML files")
    parser.add_argument("--seeds", default="0,1,2", help="for example 0,1,2")
    parser.add_argument("--output", type=Path, default=Path("checkpoints"), help="keeps the runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--device", default="auto", help="as for train")
    options = parser.parse_args()
    extra = ["--threads", str(options.threads), "--device", options.device]
    rows = []
    for recipe in options.recipes:
        records = [
            train_once(recipe, int(seed), options.output, extra)
            for seed in options.seeds.split(",")
        ]
        accuracies = [record["test_accuracy"] for record in records]
        rows.append(
            (
                *(recipe, f"mnist-ce train --config {recipe} --seed N", records[0]["epochs_done"]),
                *(len(records), accuracies, accuracies),
                [record["test_loss"] for record in records],
                [record["train_seconds"] for record in records],
                [record["process_wall_seconds"] or record["wall_seconds"] for record in records],
            )
        )
    print_table(
        f"Recipes on the MNIST test set, mean ± standard deviation over n seeds "
        f"({options.seeds}), {records[0]['device']}, {records[0]['threads']} threads",
        COLUMNS,
        rows,
        as_json=options.json,
    )


def train_once(recipe: str, seed: int, output: Path, extra: Sequence[str]) -> RunRecord:
    """Return the record of a run, training it first unless it exists and is finished."""
    run = RunDir(output / f"{Path(recipe).stem}-{seed}")
    record = run.read_record()
    if record is not None and record.is_finished:
        config = resolve_config(recipe, flags={"train.seed": seed}).to_dict()
        if recipe_of(record["config"]) != recipe_of(config):
            raise SystemExit(f"{run.path} was trained by another recipe; choose another --output")
        print(f"{run.path} exists", file=sys.stderr)
        return record
    arguments = ["train", "--config", recipe, "--seed", str(seed), *extra]
    arguments += ["--output", str(output), "--name", run.name, "--json"]
    print(f"mnist-ce {shlex.join(arguments)}", file=sys.stderr)
    start = time.perf_counter()
    printed = subprocess.check_output([sys.executable, "-m", "mnist_ce", *arguments])
    wall_seconds = round(time.perf_counter() - start, 3)
    # Kept for the next table; the run's own `wall_seconds` leaves out the imports.
    content = {**json.loads(printed), "process_wall_seconds": wall_seconds}
    record = RunRecord.model_validate(content)
    run.write_record(record)
    return record


def recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that decides the weights."""
    sections = ("model", "objective", "optimizer", "schedule", "average", "augment")
    train = {key: config["train"][key] for key in ("epochs", "batch_size", "seed")}
    validation_size = config["data"]["validation_size"]
    return {name: config[name] for name in sections} | train | {"validation_size": validation_size}


if __name__ == "__main__":
    main()

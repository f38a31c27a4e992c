"""What a recipe reaches: trained with several seeds by the program itself, tested once each.

    MNIST_CE_DATA_DIR=… python benchmarks/recipes.py fast 99 --seeds 0,1,2 --output runs

The runs stay in the output folder as `<recipe>-<seed>`, and a finished one that is there already is
not trained again, so that a table of long recipes can be made in parts. Training seconds are from
the first step to the final weights, distortion and averaging included; beside them stands the wall
time of the whole process, from its start to the pictures it draws at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import report

from mnist_ce.config import resolve_config
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir

COLUMNS = (
    *("recipe", "command", "epochs", "n", "test accuracy", "of each seed", "test loss"),
    *("training seconds", "wall seconds"),
)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="CONFIG", help="recipes or TOML files")
    parser.add_argument("--seeds", default="0,1,2", help="for example 0,1,2")
    parser.add_argument("--output", type=Path, default=Path("checkpoints"), help="keeps the runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--device", default="auto", help="as for train")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    extra = ["--threads", str(options.threads), "--device", options.device]
    rows = []
    for recipe in options.recipes:
        records = [trained(recipe, seed, options.output, extra) for seed in seeds]
        rows.append(row(recipe, records, as_json=options.json))
    report(
        f"Recipes on the MNIST test set, mean ± standard deviation over n seeds "
        f"({options.seeds}), {records[0]['device']}, {records[0]['threads']} threads",
        COLUMNS,
        rows,
        as_json=options.json,
    )


def trained(recipe: str, seed: int, output: Path, extra: Sequence[str]) -> RunRecord:
    """Return the record of one run, trained now unless it is there and finished."""
    run = RunDir(output / f"{Path(recipe).stem}-{seed}")
    wanted = resolve_config(recipe, flags={"train.seed": seed})
    record = run.read_record()
    if record is not None and record.is_finished:
        if recipe_of(record["config"]) != recipe_of(wanted.to_dict()):
            raise SystemExit(f"{run.path} was trained by another recipe; choose another --output")
        print(f"{run.path} is there", file=sys.stderr)
        return record
    arguments = ["train", "--config", recipe, "--seed", str(seed), *extra]
    place = ["--output", str(output), "--name", run.name, "--json"]
    print(f"mnist-ce {shlex.join([*arguments, *place])}", file=sys.stderr)
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-m", "mnist_ce", *arguments, *place], stdout=subprocess.PIPE, check=True
    )
    wall_seconds = time.perf_counter() - start
    # Kept, so that the table can be made again; the run's own figure leaves out the imports.
    record = RunRecord.model_validate(
        {**json.loads(answer.stdout), "process_wall_seconds": round(wall_seconds, 3)}
    )
    run.write_record(record)
    return record


def recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a config decides the result: not the place, nor how often it is tested."""
    sections = ("model", "objective", "optimizer", "schedule", "average", "augment")
    train = {key: config["train"][key] for key in ("epochs", "batch_size", "seed")}
    held_out = config["data"]["validation_size"]
    return {name: config[name] for name in sections} | train | {"validation_size": held_out}


def row(recipe: str, records: Sequence[RunRecord], *, as_json: bool) -> list[Any]:
    """Return the cells of one recipe: numbers for JSON, texts for Markdown."""
    accuracies = [record["test_accuracy"] for record in records]
    losses = [record["test_loss"] for record in records]
    train_seconds = [record["train_seconds"] for record in records]
    wall_seconds = [record["process_wall_seconds"] or record["wall_seconds"] for record in records]
    numbers = [
        *(recipe, f"mnist-ce train --config {recipe} --seed N", records[0]["epochs_done"]),
        len(records),
    ]
    if as_json:
        return [
            *numbers,
            spread(accuracies),
            accuracies,
            *map(spread, (losses, train_seconds)),
            spread(wall_seconds),
        ]
    return [
        *numbers[:1],
        f"`{numbers[1]}`",
        *numbers[2:],
        text(accuracies, 100, 3, " %"),
        ", ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies),
        text(losses, 1, 4),
        text(train_seconds, 1, 1),
        text(wall_seconds, 1, 1),
    ]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation (of the sample; None for one value)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation}


def text(values: Sequence[float], factor: float, digits: int, unit: str = "") -> str:
    """Return `mean ± standard deviation`."""
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        mean += f" ± {factor * statistics.stdev(values):.{digits}f}"
    return mean + unit


if __name__ == "__main__":
    main()

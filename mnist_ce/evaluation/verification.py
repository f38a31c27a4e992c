"""Verification: whether what a finished run says of itself is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_ce.config import resolve_config
from mnist_ce.data.dataset import DataSplits
from mnist_ce.evaluation.evaluate import load_splits_of
from mnist_ce.evaluation.inference import Evaluation, evaluate
from mnist_ce.network import INPUT_SIZE
from mnist_ce.runs.checkpoint import load_state_dict, model_from
from mnist_ce.runs.load_model import TrainedModel, load_model
from mnist_ce.runs.run_dir import RunDir, find_run
from mnist_ce.runs.train_state import load_snapshot
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import MnistCeError, RunError

__all__ = ["Check", "verify"]

LOSS_TOLERANCE = 1e-5  # relative: sums of other threads or devices round otherwise
COUNT_TOLERANCE = 2  # images whose answer rounding may turn, on another kind of device


@dataclass(frozen=True)
class Check:
    """One thing that a run says of itself.

    Args:
        name: What was checked.
        ok: Whether it is true.
        found: What was found, in words.
    """

    name: str
    ok: bool
    found: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def verify(
    name: str,
    *,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> tuple[RunDir, list[Check]]:
    """Read all files of a finished run again and measure its weights again.

    Losses and accuracies on training images are of the weights as they were batch by batch, so
    they are compared among the files, not measured.

    Args:
        name: The run's name or folder.
        output: The folder that holds the runs.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the run's own.
        device: Where to compute.

    Raises:
        RunError: If there is no such run, or it is not finished.
    """
    run = find_run(name, Path(output))
    found = run.read_record()
    if found is None or not found.is_finished:
        raise RunError(f"run {run.path} is not finished, and has no results to verify")
    record = found.to_dict()
    checks = [
        _checked("config", lambda: _config(run, record)),
        _checked("weights", lambda: _weights(run, record)),
        _checked("metrics", lambda: _metrics(run, record)),
        _checked("resume", lambda: _resume(run, record)),
    ]
    try:
        trained = load_model(run.model_path)
        task = load_splits_of(trained, data_dir=data_dir)
    except MnistCeError as error:
        return run, [*checks, Check("data", False, str(error))]
    checks.append(_checked("data", lambda: _data(task, record)))
    checks.append(_checked("test", lambda: _test(trained, task, record, device)))
    if "best_epoch" in record or run.best_path.exists():
        checks.append(_checked("best", lambda: _best(run, trained, task, record, device)))
    return run, checks


class _UntrueError(Exception):
    """Something is not as the run says."""


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (_UntrueError, MnistCeError) as error:
        return Check(name, False, str(error))
    except (KeyError, TypeError, AttributeError) as error:
        return Check(name, False, f"the record is incomplete: {error}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _UntrueError(otherwise)


def _config(run: RunDir, record: dict[str, Any]) -> str:
    config = resolve_config(run.config_path, environment={}).to_dict()
    for section, table in config.items():
        for key, value in table.items():
            said = record["config"][section][key]
            _expect(
                value == said or (section, key) == ("run", "name"),
                f"{section}.{key} is {value!r} in config.toml and {said!r} in run.json",
            )
    return "config.toml is what run.json says"


def _weights(run: RunDir, record: dict[str, Any]) -> str:
    trained = load_model(run.model_path)
    digest, said = trained.weights_sha256, record["weights_sha256"]
    _expect(digest == said, f"model.pt has weights_sha256 {digest}, the record says {said}")
    num_classes = len(record["class_names"])
    outputs = 1 if record["objective"] == "binary" else num_classes
    sizes = [INPUT_SIZE, *record["config"]["model"]["hidden"], outputs]
    _expect(
        list(trained.model.sizes) == sizes,
        f"model.pt has layers {list(trained.model.sizes)}, the config says {sizes}",
    )
    num_parameters = sum(p.numel() for p in trained.model.parameters())
    _expect(
        num_parameters == record["num_parameters"],
        f"model.pt has {num_parameters} parameters, the record says {record['num_parameters']}",
    )
    return f"weights_sha256 {digest[:16]}…, {num_parameters:,} parameters"


def _metrics(run: RunDir, record: dict[str, Any]) -> str:
    rows = run.read_metrics()
    _expect(
        [row["epoch"] for row in rows] == list(range(1, record["epochs_done"] + 1)),
        f"metrics.csv has {len(rows)} rows, the record says {record['epochs_done']} epochs",
    )
    for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        _expect(
            rows[-1].get(key) == record[key],
            f"{key} is {rows[-1].get(key)} in metrics.csv and {record[key]} in run.json",
        )
    seconds = sum(row["seconds"] for row in rows)
    _expect(
        math.isclose(seconds, record["train_seconds"], abs_tol=0.001 * (len(rows) + 1)),
        f"the epochs took {seconds:.3f} s, the record says {record['train_seconds']} s",
    )
    return f"{len(rows)} epochs, the last as in run.json"


def _resume(run: RunDir, record: dict[str, Any]) -> str:
    if not run.resume_path.exists():
        return "no resume.pt: the run cannot be extended"
    weights = load_state_dict(run.model_path)
    state, progress = load_snapshot(run, weights)
    _expect(
        len(progress.rows) == record["epochs_done"],
        f"resume.pt is of {len(progress.rows)} epochs, the record says {record['epochs_done']}",
    )
    final = state["average"] or state["weights"]
    same = all((final[name] == weights[name]).all() for name in weights)
    _expect(same, "resume.pt holds other weights than model.pt")
    return "resume.pt holds the same weights"


def _data(task: DataSplits, record: dict[str, Any]) -> str:
    said = record["dataset_digest"]
    _expect(task.digest == said, f"the data's digest is {task.digest}, the record says {said}")
    return f"{task.dataset}, digest {task.digest[:16]}…"


def _test(trained: TrainedModel, task: DataSplits, record: dict[str, Any], device: str) -> str:
    result = _evaluated(trained, task, "test", device)
    tolerance = _count_tolerance(record, device)
    said = (record["test_correct"], record["test_total"], record["test_loss"])
    _compare("test", result, *said, tolerance)
    _expect(
        record["test_accuracy"] == record["test_correct"] / record["test_total"],
        f"test_accuracy {record['test_accuracy']} is not test_correct / test_total",
    )
    return f"{result.num_correct}/{result.num_examples} right, loss {result.loss:.6f}"


def _best(
    run: RunDir, trained: TrainedModel, task: DataSplits, record: dict[str, Any], device: str
) -> str:
    rows = run.read_metrics()
    _expect(
        0 < record["best_epoch"] <= len(rows), f"metrics.csv has no epoch {record['best_epoch']}"
    )
    row = rows[record["best_epoch"] - 1]
    _expect(
        row["validation_accuracy"] == max(other["validation_accuracy"] for other in rows),
        f"epoch {record['best_epoch']} is not the best in metrics.csv",
    )
    best = TrainedModel(
        model=model_from(load_state_dict(run.best_path)),
        path=run.best_path,
        class_names=trained.class_names,
        objective=trained.objective,
        record=trained.record,
        weights_sha256="",
    )
    result = _evaluated(best, task, "validation", device)
    correct = round(record["best_validation_accuracy"] * result.num_examples)
    tolerance = _count_tolerance(record, device)
    said = (correct, result.num_examples, row["validation_loss"])
    _compare("validation", result, *said, tolerance)
    return f"epoch {record['best_epoch']}: {result.num_correct}/{result.num_examples} right"


def _evaluated(trained: TrainedModel, task: DataSplits, split: str, device: str) -> Evaluation:
    place, chosen = resolve_device(device), task.split(split)
    model = trained.model.to(place)
    return evaluate(model, chosen.images.to(place), chosen.labels, trained.objective)


def _count_tolerance(record: dict[str, Any], device: str) -> int:
    was_on = str(record["device"]).partition(":")[0]
    return 0 if resolve_device(device).type == was_on else COUNT_TOLERANCE


def _compare(
    split: str, result: Evaluation, correct: int, total: int, loss: float, tolerance: int
) -> None:
    _expect(
        abs(result.num_correct - correct) <= tolerance and result.num_examples == total,
        f"{result.num_correct} of {result.num_examples} {split} images are right, "
        f"the record says {correct} of {total}",
    )
    _expect(
        math.isclose(result.loss, loss, rel_tol=LOSS_TOLERANCE),
        f"the {split} loss is {result.loss}, the record says {loss}",
    )

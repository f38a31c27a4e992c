"""A run on disk: its folder, its config, its metrics and its record."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from mnist_ce.config import rename_old_keys
from mnist_ce.system.errors import CheckpointError, RunError
from mnist_ce.system.files import lock_folder, one_line, shipped_dir, write_atomically

__all__ = [
    "FORMAT_VERSION",
    "PRETRAINED",
    "RunDir",
    "find_checkpoint",
    "find_run",
    "list_runs",
    "metric_columns",
]

FORMAT_VERSION = 1
PRETRAINED = "pretrained"
MAX_RECORD_BYTES = 1 << 24


@dataclass(frozen=True)
class RunDir:
    """The folder of one run, `<output>/<name>/`, whose files are written whole or not at all."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def model_path(self) -> Path:
        """The final weights."""
        return self.path / "model.pt"

    @property
    def best_path(self) -> Path:
        """The weights of the best validation epoch."""
        return self.path / "best.pt"

    @property
    def resume_path(self) -> Path:
        """What exact continuation needs."""
        return self.path / "resume.pt"

    @property
    def config_path(self) -> Path:
        """The whole resolved config."""
        return self.path / "config.toml"

    @property
    def metrics_path(self) -> Path:
        """A row per epoch."""
        return self.path / "metrics.csv"

    @property
    def record_path(self) -> Path:
        """What was done, with what, and what came out."""
        return self.path / "run.json"

    @property
    def is_locked(self) -> bool:
        """Whether a process trains it at this moment, as far as its lock tells."""
        try:
            with lock_folder(self.path):
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    @property
    def lock_owner(self) -> str:
        """Who trains it, in words, as its record says."""
        try:
            process = (self.read_record() or {})["process"]
            return f"process {process['id']} on {process['host']}"
        except (RunError, KeyError, TypeError):
            return "another process"

    def write_config(self, tables: Mapping[str, Any]) -> None:
        """Write `config.toml`."""
        write_atomically(self.config_path, tomli_w.dumps(tables))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`: a row per epoch; what was not measured is left empty."""
        text = io.StringIO()
        has_validation = any(row.get("validation_loss") is not None for row in rows)
        writer = csv.DictWriter(
            text, metric_columns(has_validation), extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_path, text.getvalue())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.csv`, with None for what was not measured; none, no file.

        Raises:
            RunError: If the file is not such a table.
        """
        path = self.metrics_path
        try:
            if not path.is_file():
                return []
            if path.stat().st_size > MAX_RECORD_BYTES:
                raise RunError(f"{path} is too large for a run's metrics")
            table = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
            return [
                {key: _number(key, text) for key, text in row.items() if key in _COLUMNS}
                for row in table
                if row["epoch"]  # a KeyError where there is no such column
            ]
        except OSError as error:
            raise RunError(f"{path} cannot be read: {one_line(error)}") from None
        except (ValueError, TypeError, KeyError, csv.Error):
            raise RunError(f"{path} is not a table of metrics, a row per epoch") from None

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        write_atomically(self.record_path, json.dumps(record, indent=2, allow_nan=False) + "\n")

    def read_record(self) -> dict[str, Any] | None:
        """Return what `run.json` holds; None where there is none.

        Raises:
            RunError: If the file is not a record that this program knows.
        """
        path = self.record_path
        try:
            if not path.is_file():
                return None
            if path.stat().st_size > MAX_RECORD_BYTES:
                raise RunError(f"{path} is too large for a run's record")
            record = json.loads(path.read_bytes())
        except OSError as error:
            raise RunError(f"{path} cannot be read: {one_line(error)}") from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is not valid JSON: {one_line(error)}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise RunError(f"{path} has format_version {version!r}; {FORMAT_VERSION} is expected")
        if isinstance(config := record.get("config"), dict):
            rename_old_keys(config)
        return dict(record)


def metric_columns(has_validation: bool) -> list[str]:
    """Return the columns of `metrics.csv`."""
    validation = ["validation_loss", "validation_accuracy"] if has_validation else []
    return [
        *("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
        *validation,
        *("learning_rate", "seconds", "images_per_second"),
    ]


_COLUMNS = frozenset(metric_columns(has_validation=True))


def _number(column: str, text: str) -> float | None:
    if column == "epoch":
        return int(text)
    return float(text) if text else None


def list_runs(output: Path) -> list[tuple[RunDir, dict[str, Any]]]:
    """Return the runs in a folder that have a record, newest first; damaged ones are left out."""
    runs = []
    for path in _folders(output):
        try:
            record = RunDir(path).read_record()
        except RunError:
            continue
        if record is not None:
            runs.append((RunDir(path), record))
    return sorted(
        runs, key=lambda item: (str(item[1].get("created", "")), item[0].name), reverse=True
    )


def _folders(output: Path) -> Iterable[Path]:
    try:
        return [
            path for path in output.iterdir() if path.is_dir() and not path.name.startswith(".")
        ]
    except OSError:
        return []


def find_checkpoint(checkpoint: str | Path | None, output: Path) -> Path:
    """Return the weights meant by a path, a run's folder or name, `pretrained`, or nothing.

    Args:
        checkpoint: What the user named; None: the newest finished multi-class run in `output`,
            or else the shipped weights.
        output: The folder that holds the runs.

    Raises:
        CheckpointError: If there is no such checkpoint.
    """
    if checkpoint is None:
        for run, record in list_runs(output):
            finished = record.get("status") == "finished" and run.model_path.is_file()
            if finished and record.get("objective") == "multiclass":
                return run.model_path
        shipped = shipped_dir(PRETRAINED) / "model.pt"
        if shipped.is_file():
            return shipped
        raise CheckpointError(
            f"there is no finished run in {output}: train one with 'mnist-ce train', "
            "or name a file with --checkpoint"
        )
    path = Path(checkpoint)
    if path.exists() and not path.is_dir():
        return path
    for folder in (path, output / path):
        if (folder / "model.pt").is_file():
            return folder / "model.pt"
    if str(checkpoint) == PRETRAINED:
        return shipped_dir(PRETRAINED) / "model.pt"
    if path.is_dir() or (output / path).is_dir():
        raise CheckpointError(f"run {checkpoint} has no model.pt yet: let it finish an epoch first")
    raise CheckpointError(f"checkpoint {checkpoint} is neither a file nor a run in {output}")


def find_run(name: str, output: Path) -> RunDir:
    """Return the run meant by a folder, a name, or `latest`: the newest one that was interrupted.

    Raises:
        RunError: If there is no such run.
    """
    if name == "latest":
        for run, record in list_runs(output):
            if record.get("status") in ("running", "stopped") and not run.is_locked:
                return run
        raise RunError(f"there is no interrupted run in {output}")
    for folder in (Path(name), output / name):
        run = RunDir(folder)
        if run.config_path.is_file():
            return run
    raise RunError(f"there is no run {name} in {output}")

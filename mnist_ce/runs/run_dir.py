"""The directory of a run: its files, its creation and its lock."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from mnist_ce.config import rename_old_keys
from mnist_ce.runs.records import FORMAT_VERSION, RunRecord
from mnist_ce.system.errors import CheckpointError, RunError, UsageError
from mnist_ce.system.files import (
    check_writable,
    flush_folder,
    one_line,
    remove_unfinished,
    shipped_dir,
    write_atomically,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PRETRAINED = "pretrained"
MAX_RECORD_BYTES = 1 << 24
_LEFT_BEHIND_SECONDS = 3600.0
# `is_locked` takes a shared lock for a moment; who wants the run itself waits that long for it.
_LOCK_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True)
class RunDir:
    """The directory of one run, `<output>/<name>/`; each file is written whole or not at all."""

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
        """The training state, from which the run continues exactly."""
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
        """What the run was made from and what it measured."""
        return self.path / "run.json"

    @property
    def lock_path(self) -> Path:
        """Locked by the process that writes the run; the file itself stays."""
        return self.path / ".lock"

    @contextlib.contextmanager
    def lock(self) -> Iterator[RunDir]:
        """Lock the run against other processes, and remove what a killed process left.

        The operating system releases the lock when the process ends, however that happens.

        Raises:
            RunError: If another process has locked the run, or it cannot be written.
        """
        lock = FileLock(self.lock_path, timeout=_LOCK_TIMEOUT_SECONDS)
        try:
            check_writable(self.path)
            lock.acquire()
        except Timeout:
            raise RunError(
                f"run {self.path} is being trained by {self.lock_owner()}; wait until it ends, "
                "or stop it"
            ) from None
        except OSError as error:
            raise RunError(f"run {self.path} cannot be continued: {one_line(error)}") from None
        try:
            remove_unfinished(self.path)
            yield self
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Whether a process has locked the run, as far as this file system can say."""
        if fcntl is None:
            lock = FileLock(self.lock_path, blocking=False)
            try:
                with lock:
                    return False
            except (Timeout, OSError):
                return True
        try:
            with self.lock_path.open("rb") as file:
                # Shared, so that two listings of the runs do not disturb each other.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def lock_owner(self) -> str:
        """Return the process that trains the run, in words, from its record."""
        try:
            process = (self.read_record() or RunRecord()).process or {}
            return f"process {process['id']} on {process['host']}"
        except (RunError, KeyError):
            return "another process"

    def write_config(self, tables: Mapping[str, Any]) -> None:
        """Write `config.toml`."""
        write_atomically(self.config_path, tomli_w.dumps(tables))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`: a row per epoch; what was not measured is left empty."""
        text = io.StringIO()
        has_validation = any(row.get("validation_loss") is not None for row in rows)
        columns = metric_columns(has_validation)
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_path, text.getvalue())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.csv`, with None for what was not measured.

        Without the file there are no rows.

        Raises:
            RunError: If the file is not such a table.
        """
        path = self.metrics_path
        content = _read_small(path, "metrics")
        try:
            table = list(csv.DictReader(io.StringIO((content or b"").decode())))
            return [
                {key: _parse_metric(key, text) for key, text in row.items() if key in _COLUMNS}
                for row in table
                if row["epoch"]  # a KeyError where there is no such column
            ]
        except (ValueError, TypeError, KeyError, csv.Error):
            raise RunError(f"{path} is not a table of metrics, a row per epoch") from None

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`."""
        text = json.dumps(record.to_dict(), indent=2, allow_nan=False)
        write_atomically(self.record_path, text + "\n")

    def read_record(self) -> RunRecord | None:
        """Return the content of `run.json`; None where there is no such file.

        Raises:
            RunError: If the file is not a record of this format.
        """
        path = self.record_path
        content = _read_small(path, "record")
        if content is None:
            return None
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is not valid JSON: {one_line(error)}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise RunError(f"{path} has format_version {version!r}; {FORMAT_VERSION} is expected")
        if isinstance(config := record.get("config"), dict):
            rename_old_keys(config)
        return RunRecord.model_validate(record)


def _read_small(path: Path, kind: str) -> bytes | None:
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise RunError(f"{path} is too large for a run's {kind}")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}") from None


def metric_columns(has_validation: bool) -> list[str]:
    """Return the columns of `metrics.csv`."""
    validation = ["validation_loss", "validation_accuracy"] if has_validation else []
    return [
        *("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
        *validation,
        *("learning_rate", "seconds", "images_per_second"),
    ]


_COLUMNS = frozenset(metric_columns(has_validation=True))


def _parse_metric(column: str, text: str) -> float | None:
    if column == "epoch":
        return int(text)
    return float(text) if text else None


def check_new_run(output: Path, name: str) -> None:
    """Fail early, before the data is loaded, where `create_run` would fail.

    Args:
        output: The directory of the runs; it need not exist.
        name: The run's name; empty where one will be generated.

    Raises:
        UsageError: If the name is not that of a new directory.
        RunError: If the directory cannot be written.
    """
    if name and (Path(name).name != name or name.startswith(".") or "\0" in name):
        raise UsageError(f"run.name = {name!r} is not the name of a folder")
    try:
        if name and (output / name).exists():
            raise _exists(output / name)
        check_writable(output)
    except OSError as error:
        raise RunError(
            f"runs cannot be kept in {output}: {one_line(error)}; choose another --output"
        ) from None


def create_run(
    output: Path, name: str, stem: str, write_files: Callable[[RunDir, str], None]
) -> RunDir:
    """Create the directory of a new run; it appears with its first files, or not at all.

    The files are written in a hidden directory, which is then renamed.

    Args:
        output: The directory of the runs; created where it is missing.
        name: The run's name; empty: `stem`, with a number where that is taken.
        stem: The start of a generated name.
        write_files: Writes the first files of a run with the name that it is given.

    Raises:
        UsageError: If a run of this name exists.
        RunError: If the directory cannot be created.
    """
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(output)
        hidden = output / f".new-{secrets.token_hex(4)}.tmp"
        hidden.mkdir()
        try:
            for candidate in [name] if name else numbered:
                path = output / candidate
                if path.exists():
                    continue
                write_files(RunDir(hidden), candidate)
                try:
                    hidden.rename(path)
                except OSError:  # another process was faster?
                    if not path.exists():
                        raise
                else:
                    flush_folder(output)
                    return RunDir(path)
            raise _exists(output / name)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
    except OSError as error:
        raise RunError(
            f"no run can be made in {output}: {one_line(error)}; choose another --output"
        ) from None


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"run {path} exists and is never overwritten; choose another --name, "
        f"or continue it with --resume {path.name}"
    )


def _remove_left_behind(output: Path) -> None:
    for path in output.glob(".new-*.tmp"):  # of processes that were killed in `create_run`
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                shutil.rmtree(path)


def list_runs(output: Path) -> list[tuple[RunDir, RunRecord]]:
    """Return the runs in a directory that have a readable record, newest first."""
    runs = []
    for path in _subdirectories(output):
        try:
            record = RunDir(path).read_record()
        except RunError:
            continue
        if record is not None:
            runs.append((RunDir(path), record))
    return sorted(runs, key=lambda item: (item[1].created or "", item[0].name), reverse=True)


def _subdirectories(output: Path) -> Iterable[Path]:
    try:
        return [p for p in output.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return []


def find_checkpoint(checkpoint: str | Path | None, output: Path) -> Path:
    """Return the file of a checkpoint.

    Args:
        checkpoint: A path, a run's directory or name, or `pretrained`; None: the newest finished
            multi-class run in `output`, or else the shipped weights.
        output: The directory of the runs.

    Raises:
        CheckpointError: If there is no such checkpoint.
    """
    if checkpoint is None:
        for run, record in list_runs(output):
            if record.is_finished and record.objective == "multiclass" and run.model_path.is_file():
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
    """Return a run by directory, by name, or `latest`: the newest interrupted one.

    Raises:
        RunError: If there is no such run.
    """
    if name == "latest":
        for run, record in list_runs(output):
            if record.status in ("running", "stopped") and not run.is_locked():
                return run
        raise RunError(f"there is no interrupted run in {output}")
    for folder in (Path(name), output / name):
        run = RunDir(folder)
        if run.config_path.is_file():
            return run
    raise RunError(f"there is no run {name} in {output}")

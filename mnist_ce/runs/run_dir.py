"""The directory of a run: its files, its creation and its lock."""

from __future__ import annotations

import contextlib
import csv
import errno
import filecmp
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from filelock import FileLock, Timeout

from mnist_ce.config import MAX_EPOCHS, Config, shipped_configs
from mnist_ce.runs.records import RunRecord, RunState
from mnist_ce.system.errors import CheckpointError, RunError, UsageError
from mnist_ce.system.files import (
    check_writable,
    flush_folder,
    local_path,
    open_regular,
    read_regular,
    remove_unfinished,
    shipped_dir,
    write_atomically,
)
from mnist_ce.system.text import did_you_mean, one_line, sanitize, truncate_middle

if TYPE_CHECKING:
    from numpy.typing import NDArray

with contextlib.suppress(ImportError):  # Windows
    import fcntl

LATEST = "latest"
# The folder of each shipped network by its names; `pretrained` is the old name of `mnist`.
SHIPPED_WEIGHTS = {
    **dict.fromkeys(("world", "world-mlp"), "world"),
    **dict.fromkeys(("mnist", "mnist-mlp", "pretrained"), "mnist"),
}
RESERVED_NAMES = (LATEST, *SHIPPED_WEIGHTS)  # which no run can have
MAX_NAME_BYTES = 230  # of the 255 that a folder's may have; a search adds to it
NO_RUN_NAME = r'^[-. ]|[\\/:*?"<>|]|[. ]$|^(con|prn|aux|nul|(com|lpt)\d)(\.|$)'  # on Windows
NUM_DIGITS = 10  # a run with fewer classes is never a default
MAX_BYTES = 1 << 24  # of a record or table
STEPS_BYTES = 1 << 21  # of the rows that are read of a larger `steps.csv`
_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("validation_loss", "validation_accuracy", "learning_rate", "seconds", "images_per_second"),
)
_STEP_COLUMNS = ("step", "epoch", "loss", "accuracy", "learning_rate")
_WHOLE = ("step", "epoch")
_STEP_HEADER = ",".join(_STEP_COLUMNS) + "\n"


@dataclass
class RunDir:
    """The directory of one run, `<output>/<name>/`; each file is written whole or not at all.

    Only `steps.csv` is appended to.
    """

    path: Path

    def __post_init__(self) -> None:
        self.name = sanitize(self.path.name)  # as it is shown, whatever bytes the folder's has
        self.model_path = self.path / "model.pt"  # the final weights
        self.best_path = self.path / "best.pt"  # the weights of the best validation epoch
        self.resume_path = self.path / "resume.pt"  # all that continuing exactly needs
        self.config_path = self.path / "config.toml"  # the whole resolved config
        self.metrics_path = self.path / "metrics.csv"  # a row per epoch
        self.steps_path = self.path / "steps.csv"  # a row per `run.log_interval` steps; appended to
        self.record_path = self.path / "run.json"
        self.lock_path = self.path / ".lock"  # locked while a process writes the run; it stays

    @contextlib.contextmanager
    def lock(self) -> Iterator[RunDir]:
        """Lock the run, and remove what a killed process left; a RunError if that is impossible.

        The operating system releases the lock when the process ends, however that happens.
        """
        # `is_locked` takes a shared lock for a moment; wait that long for it.
        lock = FileLock(self.lock_path, timeout=1.0)
        try:
            check_writable(self.path)
            for path in self.path.iterdir():
                if not (path.is_file() or path.is_dir()):  # a pipe, for example, which may wait
                    raise OSError(errno.EINVAL, f"{path.name} is not a file")
            lock.acquire()
        except Timeout:
            process = {}
            with contextlib.suppress(RunError):
                process = (self.read_record() or RunRecord()).process or {}
            raise RunError(
                f"run {self.path} is being trained by process {process.get('id', '?')} on "
                f"{process.get('host', '?')}; wait until it ends, or stop it"
            ) from None
        except OSError as error:
            raise RunError(f"run {self.path} cannot be written: {one_line(error)}") from None
        try:
            remove_unfinished(self.path)
            yield self
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Whether a process has locked the run, as far as this file system can say."""
        try:
            with open_regular(self.lock_path) as file:
                # Shared, so that two listings of the runs do not disturb each other.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        except NameError:  # Windows has no fcntl
            return False
        return False

    def write_config(self, config: Config) -> None:
        """Write `config.toml` without the run's name: feeding it back makes a new run."""
        tables = config.model_dump(mode="json", exclude={"run": {"name"}})
        write_atomically(self.config_path, tomli_w.dumps(tables))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`: a row per epoch; what was not measured is left empty."""
        text = io.StringIO()
        has_validation = any(row.get("validation_loss") is not None for row in rows)
        columns = [c for c in _COLUMNS if has_validation or not c.startswith("validation")]
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_path, text.getvalue())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.csv`, none without it; None for what was not measured."""
        return _read_table(self.metrics_path, _COLUMNS[:1], _COLUMNS[1:], MAX_BYTES)

    def append_steps(self, rows: str) -> None:
        with self.steps_path.open("a", encoding="utf-8") as file:
            file.write(rows if file.tell() else _STEP_HEADER + rows)

    def truncate_steps(self, num_steps: int) -> None:
        """Drop the rows of `steps.csv` that are past a step, and all after a damaged line."""
        if self.steps_path.is_file():
            length = 0
            with open_regular(self.steps_path) as file:
                for line in file:
                    row = re.fullmatch(rb"(\d{1,18}),.*\n", line)
                    is_kept = bool(row and int(row[1]) <= num_steps)
                    if not (is_kept if length else line == _STEP_HEADER.encode()):
                        break
                    length += len(line)
            os.truncate(self.steps_path, length)

    def read_steps(self) -> NDArray[Any]:
        """Return the complete rows of `steps.csv`, none without it: a structured array [rows].

        Its columns `step` and `epoch`, int64, count from 1; `loss`, `accuracy` and `learning_rate`,
        float64, are means over the steps since the row before, of the same epoch. Of a file of more
        than 2 MB only every so many rows are read. It may be read while the run is trained.

        Raises:
            RunError: If the file is not such a table.
        """
        import numpy as np  # here, since to list runs it is not needed

        dtype = [(name, "i8" if name in _WHOLE else "f8") for name in _STEP_COLUMNS]
        rows = _read_table(self.steps_path, _STEP_COLUMNS, (), STEPS_BYTES)
        return np.array([tuple(row.values()) for row in rows], dtype)

    def write_record(self, record: RunRecord) -> None:
        text = json.dumps(record.to_dict(), indent=2, allow_nan=False)
        write_atomically(self.record_path, text + "\n")

    def read_record(self) -> RunRecord | None:
        """Return the content of `run.json`, None without it; a RunError for another format."""
        try:
            return RunRecord.parse(read_regular(self.record_path, MAX_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{self.record_path} cannot be read: {one_line(error)}") from None
        except ValueError as error:
            raise RunError(f"{self.record_path} {one_line(error)}") from None


def _read_table(
    path: Path, required: Sequence[str], optional: Sequence[str], max_bytes: int
) -> list[dict[str, Any]]:
    """Return the whole rows of a table, none without the file; of a large one each so-manieth.

    An optional column may be missing, and there is None for its empty cells.
    """
    try:
        with open_regular(path) as file:
            stride = 1 + os.fstat(file.fileno()).st_size // max_bytes
            kept = itertools.islice(file, 0, None, stride)
            lines = [line.decode() for line in kept if line.endswith(b"\n")]
        if len(lines) > MAX_EPOCHS + 1:
            raise ValueError
        rows = csv.DictReader(lines)
        names = [*required, *(name for name in optional if name in (rows.fieldnames or ()))]
        return [
            {
                name: _number(name, row[name]) if row[name] or name in required else None
                for name in names
            }
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise RunError(
            f"{path} is not a table of metrics with a row per {required[0]}, {MAX_EPOCHS:,} at most"
        ) from None


def _number(name: str, text: str) -> float:
    value = int(text) if name in _WHOLE else float(text)
    if not 0 <= value < (2**53 if name in _WHOLE else 1e39):  # float32's range
        raise ValueError(f"{name} is NaN, negative or too large")
    return value


def check_run_name(name: str) -> None:
    """Raise a UsageError for a name that some command, shell or system could not use."""
    is_long = len(name.encode(errors="replace")) > MAX_NAME_BYTES
    if name in RESERVED_NAMES:
        problem = "stands for " + ("the newest run" if name == LATEST else "shipped weights")
    elif is_long or not name.isprintable() or re.search(NO_RUN_NAME, name, re.IGNORECASE):
        problem = (
            f"has more than {MAX_NAME_BYTES} bytes, begins as an option does, "
            "or is not the name of a folder on every system"
        )
    else:
        return
    raise UsageError(
        f"run.name = {truncate_middle(repr(name), 80)} {problem}; choose another --name"
    )


def check_new_run(output: Path, name: str) -> None:
    """Raise what `create_run` would raise, before the data is loaded."""
    if name:
        check_run_name(name)
    with _output_errors(output):
        if name and (output / name).exists():
            raise _exists(output / name)
        check_writable(output)


def create_run(
    output: Path, name: str, stem: str, write_files: Callable[[RunDir, str], None]
) -> RunDir:
    """Create the directory of a new run; it appears with its first files, or not at all.

    Without a name it is called `stem`, with a number where that is taken. `write_files` writes the
    first files of a run of the name that it gets, in a hidden directory that is then renamed. A
    UsageError if a run of this name exists.
    """
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    with _output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for path in output.glob(".new-*"):  # of processes that were killed in this function
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    shutil.rmtree(path)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=output) as folder:
            hidden = RunDir(Path(folder) / "run")
            for path in (output / one for one in ([name] if name else numbered)):
                if path.exists():
                    continue
                hidden.path.mkdir(exist_ok=True)
                write_files(hidden, path.name)
                try:
                    hidden.path.rename(path)
                except OSError:  # another process was faster?
                    if not path.exists():
                        raise
                else:
                    flush_folder(output)
                    return RunDir(path)
        raise _exists(output / name)


@contextlib.contextmanager
def _output_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{one_line(error)}; choose another --output"
        raise RunError(f"no run can be made in {output}: {reason}") from None


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"run {path} exists and is never overwritten; choose another --name, "
        f"or continue it with --resume {path.name}"
    )


def list_runs(output: Path, problems: list[str] | None = None) -> list[tuple[RunDir, RunRecord]]:
    """Return the runs in a folder, the newest first; `problems` gets why one is left out."""
    runs = []
    files = (*output.glob("[!.]*/run.json"), *output.glob("[!.]*/config.toml"))
    for run in map(RunDir, {path.parent for path in files}):
        try:
            if (record := run.read_record()) is None:
                raise RunError(f"{run.record_path} is missing")
            runs.append((run, record))
        except RunError as error:
            if problems is not None:
                problems.append(str(error))
    return sorted(runs, key=lambda item: (item[1].created or "", item[0].name), reverse=True)


def run_state(run: RunDir, record: RunRecord) -> RunState:
    """Return the state of a run as users see it: any but `stopped` and `failed`."""
    if run.is_locked():
        return RunState.RUNNING
    if record.status in (RunState.FINISHED, RunState.PRUNED):
        return record.status
    return RunState.RESUMABLE if run.resume_path.is_file() else RunState.LOST


def shipped_weights(name: str) -> Path:
    return shipped_dir(SHIPPED_WEIGHTS[name]) / "model.pt"


def is_shipped(run: RunDir) -> bool:
    """Whether a run holds shipped weights, which lie among the runs in a checkout."""
    name = run.path.resolve().name
    try:
        return name in SHIPPED_WEIGHTS and filecmp.cmp(run.model_path, shipped_weights(name), False)
    except OSError:
        return False


def newest_run(
    output: Path, state: RunState = RunState.FINISHED, min_classes: int = 0
) -> tuple[RunDir, RunRecord] | None:
    """Return the newest of the user's own runs that a command can use: what `latest` means.

    With `min_classes` it has weights, and is not a yes/no network.
    """
    for run, record in list_runs(output):
        is_classifier = record.objective == "multiclass" and run.model_path.is_file()
        has_classes = is_classifier and len(record.class_names or ()) >= min_classes
        fits = run_state(run, record) == state and (has_classes or not min_classes)
        if fits and not is_shipped(run):
            return run, record
    return None


def _find_folder(name: str, output: Path, file: str) -> Path | None:
    """Return the folder of a run or of shipped weights: the one meaning of their names.

    Shipped weights go before a run of their name, which is reached by its path; of a path and a
    name, the one is taken that has the file.
    """
    if name in SHIPPED_WEIGHTS:
        return shipped_weights(name).parent
    return next((path for path in (Path(name), output / name) if (path / file).is_file()), None)


def find_checkpoint(checkpoint: str | Path | None, output: Path) -> Path:
    """Return the file of a checkpoint; for arguments and errors see `load_model`."""
    name = local_path(str(LATEST if checkpoint is None else checkpoint))
    path = Path(name)
    if name == LATEST:
        if newest := newest_run(output, min_classes=NUM_DIGITS):
            return newest[0].model_path
        if checkpoint is None:
            return shipped_weights("mnist")
        raise CheckpointError(
            f"there is no finished run of {NUM_DIGITS} classes in {output}: train one with "
            "'mnist-ce train'"
        )
    if name not in SHIPPED_WEIGHTS and path.exists() and not path.is_dir():
        return path
    if folder := _find_folder(name, output, "model.pt"):
        return folder / "model.pt"
    if path.is_dir() or (output / path).is_dir():
        raise CheckpointError(
            f"checkpoint {name} is a folder that has no model.pt, which a run has when its first "
            "epoch is done: name one of its files"
        )
    beside = map(str, path.parent.glob("[!.]*"))
    near = _suggestion(name, output, *SHIPPED_WEIGHTS, *beside)
    raise CheckpointError(f"checkpoint {name} is neither a file nor a run in {output}{near}")


def find_run(name: str, output: Path, state: RunState = RunState.FINISHED) -> RunDir:
    """Return a run by directory, by name, or `latest`, the newest of a state; else a RunError."""
    name = local_path(name)
    if name == LATEST and (newest := newest_run(output, state)):
        return newest[0]
    if name == LATEST:
        raise RunError(f"there is no {state} run in {output}")
    if folder := _find_folder(name, output, "config.toml"):
        return RunDir(folder)
    raise RunError(f"there is no run {name} in {output}{_suggestion(name, output)}")


def _suggestion(name: str, output: Path, *others: str) -> str:
    if name not in shipped_configs():
        return did_you_mean(name, [*others, *(path.name for path in output.glob("[!.]*"))])
    runs = [run.name for run, record in list_runs(output) if record.recipe == name]
    advice = f"its newest run is {runs[0]}" if runs else f"mnist-ce train --config {name} trains it"
    return f"; {name} is a recipe: {advice}"


def delete_run(run: RunDir) -> None:
    """Delete a run; a RunError if another process has locked it, or it cannot be deleted."""
    with run.lock():
        pass  # Windows renames no directory with an open file
    try:  # at once, in a folder whose rest `create_run` removes
        with tempfile.TemporaryDirectory(prefix=".new-", dir=run.path.parent) as folder:
            run.path.rename(Path(folder) / "run")
    except OSError as error:
        raise RunError(f"run {run.path} cannot be deleted: {one_line(error)}") from None

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
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple

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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LATEST = "latest"
# The folder of each shipped network by its names; `pretrained` is the old name of `mnist`.
SHIPPED_WEIGHTS = {"world": "world", "world-mlp": "world", "mnist": "mnist"}
SHIPPED_WEIGHTS |= {"mnist-mlp": "mnist", "pretrained": "mnist"}
RESERVED_NAMES = (LATEST, *SHIPPED_WEIGHTS)  # which no run can have
MAX_NAME_BYTES = 230  # of the 255 that a folder's may have; a search adds to it
NO_FOLDER_NAME = r'^[. ]|[\\/:*?"<>|]|[. ]$|^(con|prn|aux|nul|(com|lpt)\d)(\.|$)'  # on Windows
NUM_DIGITS = 10  # a run with fewer classes is never a default
WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
MAX_BYTES = 1 << 24  # of a record or table
STEPS_BYTES, STEPS_PARTS = 1 << 22, 512  # read of a larger `steps.csv`, in parts of 90 rows or so
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
            if os.path.lexists(self.lock_path) and not S_ISREG(self.lock_path.lstat().st_mode):
                raise OSError(errno.EINVAL, "its .lock is not a regular file")
            lock.acquire()
        except Timeout:
            process = {"id": "?", "host": "?"}
            with contextlib.suppress(RunError):
                process |= (self.read_record() or RunRecord()).process or {}
            raise RunError(
                f"run {self.path} is being trained by process {process['id']} on "
                f"{process['host']}; wait until it ends, or stop it"
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
            try:
                with FileLock(self.lock_path, blocking=False):
                    return False
            except (Timeout, OSError):
                return True
        try:
            with open_regular(self.lock_path) as file:
                # Shared, so that two listings of the runs do not disturb each other.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
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
        try:
            content = _read(self.metrics_path) or b""
            if content.count(b"\n") > MAX_EPOCHS:
                raise ValueError
            lines = content.decode().splitlines(keepends=True)
            rows = csv.DictReader(line for line in lines if line.endswith("\n"))
            present = [name for name in _COLUMNS if name in {"epoch", *(rows.fieldnames or ())}]
            return [{name: _number(name, row[name]) for name in present} for row in rows]
        except (ValueError, KeyError, csv.Error):
            raise RunError(
                f"{self.metrics_path} is not a table of metrics, a row per epoch "
                f"({MAX_EPOCHS:,} at most)"
            ) from None

    def append_steps(self, rows: str) -> None:
        with self.steps_path.open("a", encoding="utf-8") as file:
            file.write(rows if file.tell() else _STEP_HEADER + rows)

    def truncate_steps(self, num_steps: int) -> None:
        """Drop the rows of `steps.csv` that are past a step, and all after a damaged line."""
        if self.steps_path.is_file():
            with open_regular(self.steps_path) as file:
                header = file.readline()
                length = len(header) if header == _STEP_HEADER.encode() else 0
                for line in file if length else ():
                    step = line.partition(b",")[0]
                    is_whole = line.endswith(b"\n") and step.isdigit() and len(step) < 19
                    if not is_whole or int(step) > num_steps:
                        break
                    length += len(line)
            os.truncate(self.steps_path, length)

    def read_steps(self) -> NDArray[Any]:
        """Return the complete rows of `steps.csv`, none without it: a structured array [rows].

        Its columns `step` and `epoch`, int64, count from 1; `loss`, `accuracy` and `learning_rate`,
        float64, are means over the steps since the row before, of the same epoch. Of a file of more
        than 4 MB only parts are read, spread evenly. It may be read while the run is trained.

        Raises:
            RunError: If the file is not such a table.
        """
        import numpy as np  # here, since to list runs it is not needed

        dtype = np.dtype([(name, "i8" if name in _WHOLE else "f8") for name in _STEP_COLUMNS])
        try:
            text = (_read(self.steps_path, STEPS_BYTES, _read_evenly) or b"").decode()
            header, *lines = text.splitlines() or [_STEP_HEADER.strip()]
            columns = [header.split(",").index(name) for name in _STEP_COLUMNS]
            if not any(lines):
                return np.empty(0, dtype)
            rows = np.loadtxt(lines, dtype, None, ",", usecols=columns, ndmin=1)
            for name in _STEP_COLUMNS:
                _check_numbers(name, rows[name].min(), rows[name].max())
        except ValueError:
            raise RunError(f"{self.steps_path} is not a table of metrics by step") from None
        return rows

    def write_record(self, record: RunRecord) -> None:
        text = json.dumps(record.to_dict(), indent=2, allow_nan=False)
        write_atomically(self.record_path, text + "\n")

    def read_record(self) -> RunRecord | None:
        """Return the content of `run.json`, None without it; a RunError for another format."""
        if (content := _read(self.record_path)) is None:
            return None
        try:
            return RunRecord.parse(content)
        except ValueError as error:
            raise RunError(f"{self.record_path} {one_line(error)}") from None


def _read(
    path: Path, max_bytes: int = MAX_BYTES, read: Callable[[Path, int], bytes] = read_regular
) -> bytes | None:
    try:
        return read(path, max_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}") from None


def _read_evenly(path: Path, max_bytes: int) -> bytes:
    """Return the whole lines of a table; of a larger one those in parts from start to end."""
    with open_regular(path) as file:
        text, size = file.read(max_bytes), os.fstat(file.fileno()).st_size
        if size > max_bytes:
            length = max_bytes // STEPS_PARTS
            parts = [text[:length]]
            for number in range(1, STEPS_PARTS):
                file.seek(number * (size - length) // (STEPS_PARTS - 1))
                parts.append(file.read(length).partition(b"\n")[2])
            text = b"".join(part[: part.rfind(b"\n") + 1] for part in parts)
    return text[: text.rfind(b"\n") + 1]


def _number(name: str, text: str | None) -> float | None:
    """Return a value of `metrics.csv`; None for an empty cell."""
    if not text and name not in _WHOLE:
        return None
    value = int(text or "") if name in _WHOLE else float(text or "")
    _check_numbers(name, value, value)
    return value


def _check_numbers(name: str, lowest: float, highest: float) -> None:
    if not (lowest >= 0 and highest < (2**53 if name in _WHOLE else 1e39)):  # float32's range
        raise ValueError(f"{name} is NaN, negative or too large")


def check_run_name(name: str) -> None:
    """Raise a UsageError for a name that some command, shell or system could not use."""
    problems = {
        "stands for the newest run": name == LATEST,
        "stands for shipped weights": name in SHIPPED_WEIGHTS,
        "begins as an option does": name.startswith("-"),
        "has characters that cannot be printed": not name.isprintable(),  # or are not UTF-8
        f"has more than {MAX_NAME_BYTES} bytes": len(name.encode(errors="replace"))
        > MAX_NAME_BYTES,
        "is not the name of a folder on every system": re.search(NO_FOLDER_NAME, name, re.I),
    }
    if problem := next((text for text, is_so in problems.items() if is_so), None):
        shown = truncate_middle(repr(name), 80)
        raise UsageError(f"run.name = {shown} {problem}; choose another --name")


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
        for path in output.glob(".new-*.tmp"):  # of processes that were killed in this function
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    shutil.rmtree(path)
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


@contextlib.contextmanager
def _output_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"no run can be made in {output}: {one_line(error)}; choose another --output"
        ) from None


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"run {path} exists and is never overwritten; choose another --name, "
        f"or continue it with --resume {path.name}"
    )


def list_runs(output: Path, problems: list[str] | None = None) -> list[tuple[RunDir, RunRecord]]:
    """Return the runs in a folder, the newest first; `problems` gets why one is left out."""
    return sorted(_each_run(output, problems), key=_age_key, reverse=True)


def _each_run(
    output: Path, problems: list[str] | None = None
) -> Iterator[tuple[RunDir, RunRecord]]:
    files = (*output.glob("[!.]*/run.json"), *output.glob("[!.]*/config.toml"))
    runs = {path.parent: RunDir(path.parent) for path in files}
    for run in sorted(runs.values(), key=lambda run: _written_at(run.record_path), reverse=True):
        problem = f"{run.record_path} is missing"
        try:
            if (record := run.read_record()) is not None:
                yield run, record
                continue
        except RunError as error:
            problem = str(error)
        if problems is not None:
            problems.append(problem)


def _written_at(path: Path) -> str:
    """Return the time of a file as `created` of a record has it."""
    seconds = path.stat().st_mtime if path.exists() else 0.0  # removed meanwhile
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _age_key(item: tuple[RunDir, RunRecord]) -> tuple[str, str]:
    return item[1].created or "", item[0].name


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
    name = SHIPPED_WEIGHTS.get(run.path.resolve().name)
    with contextlib.suppress(OSError):
        return name is not None and filecmp.cmp(
            run.model_path, shipped_weights(name), shallow=False
        )
    return False


class Criterion(NamedTuple):
    """Which runs a command can use."""

    description: str
    is_met: Callable[[RunDir, RunRecord], bool]


FINISHED = Criterion("finished run", lambda run, record: record.is_finished)
CLASSIFIER = Criterion(
    f"finished run of {NUM_DIGITS} classes",
    lambda run, record: (
        record.is_finished
        and record.objective == "multiclass"
        and len(record.class_names or ()) >= NUM_DIGITS
        and run.model_path.is_file()
    ),
)
INTERRUPTED = Criterion(
    "interrupted run",
    lambda run, record: (
        record.status in (RunState.RUNNING, RunState.STOPPED) and not run.is_locked()
    ),
)


def newest_run(output: Path, criterion: Criterion = CLASSIFIER) -> tuple[RunDir, RunRecord] | None:
    """Return the newest of the user's own runs that a command can use: what `latest` means."""
    newest: tuple[RunDir, RunRecord] | None = None
    for run, record in _each_run(output):
        if newest and _written_at(run.record_path) < (newest[1].created or ""):
            break  # what was last written before a run was created is older
        if criterion.is_met(run, record) and not is_shipped(run):
            newest = max(newest or (run, record), (run, record), key=_age_key)
    return newest


def _find_folder(name: str, output: Path, criterion: Criterion, file: str) -> Path | None:
    """Return the folder of a run or of shipped weights: the one meaning of their names.

    Shipped weights go before a run of their name, which is reached by its path; of a path and a
    name, the one is taken that has the file.
    """
    if name == LATEST:
        newest = newest_run(output, criterion)
        return newest[0].path if newest else None
    if name in SHIPPED_WEIGHTS:
        return shipped_weights(name).parent
    return next((path for path in (Path(name), output / name) if (path / file).is_file()), None)


def find_checkpoint(checkpoint: str | Path | None, output: Path) -> Path:
    """Return the file of a checkpoint; for arguments and errors see `load_model`."""
    name = local_path(str(LATEST if checkpoint is None else checkpoint))
    path = Path(name)
    if name not in RESERVED_NAMES and path.exists() and not path.is_dir():
        return path
    if folder := _find_folder(name, output, CLASSIFIER, "model.pt"):
        return folder / "model.pt"
    if checkpoint is None:
        return shipped_weights("mnist")
    if name == LATEST:
        raise CheckpointError(
            f"there is no {CLASSIFIER.description} in {output}: train one with 'mnist-ce train'"
        )
    if path.is_dir() or (output / path).is_dir():
        run = RunDir(path if path.is_dir() else output / path)
        if run.config_path.is_file() or run.record_path.is_file():
            raise CheckpointError(f"checkpoint {name} has no model.pt yet: let it finish an epoch")
        files = [p for p in run.path.iterdir() if p.suffix in WEIGHTS_SUFFIXES]
        advice = f"; name one of its files: {', '.join(sorted(map(str, files))[:3])}"
        raise CheckpointError(
            f"checkpoint {name} is a folder without a run (it has no model.pt)"
            f"{advice if files else ''}"
        )
    beside = [str(path.parent / other) for other in _entries(path.parent)]
    near = _suggestion(str(path), output, [*SHIPPED_WEIGHTS, *_entries(output), *beside])
    raise CheckpointError(f"checkpoint {name} is neither a file nor a run in {output}{near}")


def find_run(name: str, output: Path, criterion: Criterion) -> RunDir:
    """Return a run by directory, by name, or `latest`; a RunError if there is none."""
    name = local_path(name)
    if folder := _find_folder(name, output, criterion, "config.toml"):
        return RunDir(folder)
    if name == LATEST:
        raise RunError(f"there is no {criterion.description} in {output}")
    raise RunError(
        f"there is no run {name} in {output}{_suggestion(name, output, _entries(output))}"
    )


def _suggestion(name: str, output: Path, names: Sequence[str]) -> str:
    if name not in shipped_configs():
        return did_you_mean(name, names)
    runs = (run.name for run, record in list_runs(output) if record.recipe == name)
    newest = next(runs, None)
    advice = (
        f"its newest run is {newest}" if newest else f"mnist-ce train --config {name} trains it"
    )
    return f"; {name} is a recipe: {advice}"


def _entries(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return []


def delete_run(run: RunDir) -> None:
    """Delete a run; a RunError if another process has locked it, or it cannot be deleted."""
    with run.lock():
        pass  # Windows renames no directory with an open file
    hidden = run.path.with_name(f".new-{secrets.token_hex(4)}.tmp")
    try:
        os.utime(run.path)  # new, so that no `create_run` takes it for what a killed process left
        run.path.rename(hidden)  # at once: `create_run` removes what a killed process leaves
        shutil.rmtree(hidden)
    except OSError as error:
        raise RunError(f"run {run.path} cannot be deleted: {one_line(error)}") from None

"""A run's folder: made whole in one moment, and held by one process at a time."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.files import (
    check_writable,
    flush_folder,
    lock_folder,
    one_line,
    remove_unfinished,
    repository_root,
)

__all__ = ["check_new_run", "git_commit", "locked_run", "new_run", "run_name", "timestamp"]

_LEFT_BEHIND_SECONDS = 3600.0


def check_new_run(output: Path, name: str) -> None:
    """Refuse early what `new_run` would refuse after the data is loaded.

    Args:
        output: The folder that holds the runs; it need not exist.
        name: The run's name; empty where one will be made.

    Raises:
        UsageError: If the name is not that of a new folder.
        RunError: If the folder cannot be written.
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


@contextlib.contextmanager
def new_run(
    output: Path, make_name: Callable[[], str], fill: Callable[[RunDir], None]
) -> Iterator[RunDir]:
    """Make the folder of a new run, and hold it.

    It is filled under a hidden name and then renamed, so that it appears whole and only one of
    several processes that ask for the same name gets it.

    Args:
        output: The folder that holds the runs; made where it is missing.
        make_name: Returns the name; asked again as long as others take the names it returns.
        fill: Writes the first files.

    Raises:
        UsageError: If a run of this name exists.
        RunError: If the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(output)
            hidden = output / f".new-{secrets.token_hex(4)}.tmp"
            hidden.mkdir()
            try:
                stack.enter_context(lock_folder(hidden))
                fill(RunDir(hidden))
                path = _appear(hidden, output, make_name)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            flush_folder(output)
        except OSError as error:
            raise RunError(
                f"no run can be made in {output}: {one_line(error)}; choose another --output"
            ) from None
        yield RunDir(path)


def _appear(hidden: Path, output: Path, make_name: Callable[[], str]) -> Path:
    """Give a filled folder its name; it replaces nothing."""
    tried = ""
    while True:
        name = make_name()
        path = output / name
        if not path.exists():
            try:
                return hidden.rename(path)
            except OSError:
                if not path.exists():
                    raise
        if name == tried:
            raise _exists(path)
        tried = name


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"run {path} exists and is never overwritten; choose another --name, "
        f"or continue it with --resume {path.name}"
    )


def _remove_left_behind(output: Path) -> None:
    """Remove folders that processes killed while making them left behind."""
    for path in output.glob(".new-*.tmp"):
        with contextlib.suppress(OSError), lock_folder(path):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                shutil.rmtree(path)


@contextlib.contextmanager
def locked_run(run: RunDir) -> Iterator[RunDir]:
    """Hold a run's folder, to write in it, and tidy up what a killed process left.

    Raises:
        RunError: If another process holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            check_writable(run.path)
            stack.enter_context(lock_folder(run.path))
        except BlockingIOError:
            raise RunError(
                f"run {run.path} is being trained by {run.lock_owner}; wait until it ends, "
                "or stop it"
            ) from None
        except OSError as error:
            raise RunError(f"run {run.path} cannot be continued: {one_line(error)}") from None
        remove_unfinished(run.path)
        yield run


def run_name(output: Path, dataset: str, recipe: str) -> str:
    """Make a name that no run in the folder has: dataset, recipe and local time."""
    stem = f"{dataset}-{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = stem, 1
    while (output / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def timestamp() -> str:
    """Return the present moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit() -> str | None:
    """Return the commit that the program runs from, where it runs from a git checkout."""
    if not (repository_root() / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=repository_root(),
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None

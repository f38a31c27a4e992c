"""Errors that a user can cause, with their exit codes.

A message has one line, which names the file, key or value and says what to do. A bug is an ordinary
exception and shows its traceback.
"""

from __future__ import annotations

from importlib.util import find_spec


class MnistCeError(Exception):
    """The work failed: exit code 1 unless a subclass says otherwise."""

    exit_code = 1


class UsageError(MnistCeError):
    """The command line or the config is wrong; exit code 2."""

    exit_code = 2


class DeviceError(UsageError):
    """A device was named that this machine does not have."""


class DataError(MnistCeError):
    """A dataset is missing, damaged or not what its digest says."""


class CheckpointError(MnistCeError):
    """A checkpoint cannot be read or has a network that is not supported."""


class ImageError(MnistCeError):
    """An image cannot be read."""


class ImageTooLargeError(ImageError):
    """An image has too many pixels to decode it."""


class RunError(MnistCeError):
    """A run directory cannot be made, read, locked or written."""


class TrainingError(MnistCeError):
    """Training cannot go on: the loss is not finite, for example."""


class StoppedError(MnistCeError):
    """A signal stopped training after the state was saved; exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number, self.exit_code = signal_number, 128 + signal_number


def require(*packages: str, extra: str) -> None:
    """Raise a UsageError unless the packages of one of the program's extras are installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(
                f"the package {package} is not installed: pip install 'mnist-ce[{extra}]'"
            )

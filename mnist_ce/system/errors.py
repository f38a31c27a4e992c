"""What can go wrong for a user, and the exit code that goes with it.

Everything that a user can cause is one of these, with a message of one line that names the file,
key or value and says what to do. A bug is an ordinary exception and shows its traceback.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DataError",
    "DeviceError",
    "ImageError",
    "MnistCeError",
    "RunError",
    "StoppedError",
    "TrainingError",
    "UsageError",
]


class MnistCeError(Exception):
    """The work failed: exit code 1 unless a subclass says otherwise."""

    exit_code = 1


class UsageError(MnistCeError):
    """The command line or the config is wrong."""

    exit_code = 2


class DeviceError(UsageError):
    """A device was asked for by name that this machine does not have."""


class DataError(MnistCeError):
    """A dataset is missing, damaged or not what it says."""


class CheckpointError(MnistCeError):
    """A checkpoint cannot be read or does not hold a network this program knows."""


class ImageError(MnistCeError):
    """A picture cannot be read."""


class RunError(MnistCeError):
    """A run directory cannot be made, read, locked or written."""


class TrainingError(MnistCeError):
    """Training cannot go on: the loss is not finite, for example."""


class StoppedError(MnistCeError):
    """Training was stopped by a signal after its state was saved.

    Args:
        message: What was saved and how to go on.
        signal_number: The signal, from which the exit code is made (128 + number).
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

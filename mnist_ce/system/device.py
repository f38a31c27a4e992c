"""The device, its threads, its random state and its determinism, and what to record of them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import torch

from mnist_ce.system.errors import DeviceError

__all__ = [
    "derived_generator",
    "device_name",
    "environment",
    "reproducible",
    "resolve_device",
    "synchronize",
    "use_threads",
]

# Streams keep random numbers for different ends apart although they share one seed.
STREAMS = {"order": 1, "validation": 2, "flags": 3}


def resolve_device(name: str) -> torch.device:
    """Return the device asked for.

    Args:
        name: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`. Only `auto` chooses: CUDA, then CPU.

    Raises:
        DeviceError: If the device is not there; a named device is never replaced by another.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"device '{name}' is not known; use auto, cpu, mps, cuda or cuda:N"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(
                f"device '{name}' is not there: torch {torch.__version__} finds no CUDA GPU; "
                "use --device cpu or auto"
            )
        if (device.index or 0) >= count:
            raise DeviceError(f"device '{name}' is not there: this machine has {count} CUDA GPU(s)")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not there; use --device cpu or auto")
    if device.type not in ("cpu", "mps"):
        raise DeviceError(f"device '{name}' is not supported; use auto, cpu, mps, cuda or cuda:N")
    return device


@contextlib.contextmanager
def reproducible(seed: int, threads: int = 0) -> Iterator[None]:
    """Seed torch, fix its thread count and ask for deterministic kernels; undo all on leaving.

    `CUBLAS_WORKSPACE_CONFIG` must be in the environment before CUDA starts for cuBLAS to be
    deterministic (torch's notes on reproducibility); it is set here where it is not.

    Args:
        seed: The seed of torch's global generators.
        threads: CPU threads; 0 leaves them as they are.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # `use_deterministic_algorithms` does the same, but imports torch's compiler, which takes 2 s.
    before = torch.get_deterministic_debug_mode()
    with use_threads(threads), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            torch.set_deterministic_debug_mode("error")
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Use so many CPU threads, 0 for as many as before; undone on leaving."""
    before = torch.get_num_threads()
    try:
        if threads:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def derived_generator(seed: int, stream: str, number: int = 0) -> torch.Generator:
    """Return a CPU generator that is a function of (seed, stream, number) alone.

    The three are mixed by NumPy's `SeedSequence`, so that neighbouring seeds and numbers give
    unrelated generators.

    Args:
        seed: The run's seed.
        stream: What the numbers are for: `order` or `validation`.
        number: The epoch or step.
    """
    mixed = np.random.SeedSequence([seed, STREAMS[stream], number])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it (nothing to do on a CPU)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """Return what the device is, in words: `cpu`, or the GPU's name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def environment() -> dict[str, str]:
    """Return the versions that the bytes of a run depend on."""
    system = f"{platform.system()}-{platform.machine()}"
    versions = {"python": platform.python_version(), "platform": system}
    for package in ("mnist-ce", "torch", "torchvision", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return versions

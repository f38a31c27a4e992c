"""Device, threads, seeds and determinism of a run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import torch

from mnist_ce.system.errors import DeviceError

# Different uses of one seed get unrelated random numbers; the values are part of every result.
STREAMS = {"order": 1, "validation": 2, "upstrokes": 3, "thin_copies": 4}


def resolve_device(name: str) -> torch.device:
    """Return a device by name; a DeviceError if it is missing, never another in its place."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]?))?", name):  # torch reads cuda:128 as -128
        raise DeviceError(f"device '{name}' is not known; use auto, cpu, mps, cuda or cuda:N")
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    num_devices = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": count}
    if (device.index or 0) >= num_devices[device.type]:
        raise DeviceError(
            f"device '{name}' is not there: torch {torch.__version__} finds {count} CUDA GPU(s); "
            "use --device cpu or auto"
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@contextlib.contextmanager
def reproducible(seed: int, threads: int = 0, *, warn_only: bool = False) -> Iterator[None]:
    """Seed torch, set its thread count (0: unchanged) and require deterministic kernels.

    With `warn_only` other kernels only cause a warning. At the end all is as it was.
    """
    # cuBLAS is deterministic only if this is set before CUDA starts (torch: Reproducibility).
    variable = "CUBLAS_WORKSPACE_CONFIG"
    config_before = os.environ.get(variable)
    # `use_deterministic_algorithms` does the same, but imports torch's compiler, which takes 2 s.
    mode_before = torch.get_deterministic_debug_mode()
    with use_threads(threads), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            os.environ.setdefault(variable, ":4096:8")
            torch.manual_seed(seed)
            torch.set_deterministic_debug_mode("warn" if warn_only else "error")
            yield
        finally:
            torch.set_deterministic_debug_mode(mode_before)
            if config_before is None:
                os.environ.pop(variable, None)


@contextlib.contextmanager
def use_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if threads:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def derived_generator(seed: int, stream: str, number: int = 0) -> torch.Generator:
    """Return a CPU generator that is a function of (seed, stream, number) alone.

    NumPy's `SeedSequence` mixes them, so that neighbouring seeds give unrelated generators.
    """
    mixed = np.random.SeedSequence([seed, STREAMS[stream], number])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))


def environment() -> dict[str, str]:
    """Return the versions, CPU kernels and BLAS that the bytes of a run depend on."""
    build = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\S+)", build)
    versions = {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "kernels": torch.backends.cpu.get_cpu_capability(),  # such as AVX512
        "blas": f"MKL {mkl[1]}" if mkl else "".join(re.findall(r"BLAS_INFO=(\w+)", build)),
    }
    for package in ("mnist-ce", "torch", "torchvision", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout, not installed
            versions[package] = metadata.version(package)
    return versions

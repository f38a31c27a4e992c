"""Weights on disk: plain `state_dict`s, written atomically and read without trust."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_ce.network.model import MLP
from mnist_ce.runs.foreign_formats import (
    LEGACY_MAGIC,
    describe_archive,
    describe_file,
    describe_pickle,
)
from mnist_ce.runs.linear_layers import NumpyValue, find_linear_layers
from mnist_ce.system.errors import CheckpointError
from mnist_ce.system.files import write_atomically
from mnist_ce.system.text import one_line, sanitize

MAX_BYTES = 1 << 30  # the standard network takes 2.7 MB
SAFETENSORS = "safetensors"
NUMPY_NAMES = (
    *("numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values with `torch.save`; see `write_atomically`."""
    buffer = io.BytesIO()  # to a full disk, `torch.save` raises a RuntimeError
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def check_claimed_bytes(tensor: Tensor) -> None:
    """Raise a ValueError if a tensor has more elements than its file.

    A file of 1.6 kB can hold a tensor of 2^40 elements with stride 0: check before any copy.
    """
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"claims {tensor.numel():,} values, but the file holds fewer")


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - the caller checks the content
    """Read a file of `torch.save`, in either of its formats, or of safetensors.

    No code from the file is executed.

    Raises:
        CheckpointError: If the file is missing, damaged, too large, compressed or of another
            format, or contains anything but tensors, plain values and NumPy's.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[Any, str]:
    """Return the content of a file, and the name of its format where that is an unusual one."""
    content = _read(path)
    if content.startswith(b"PK"):
        return _unpickle(path, content, _pickle_of(path, content)), ""
    if content.startswith(LEGACY_MAGIC):
        return _unpickle(path, content, content), "torch's legacy format"
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < MAX_BYTES:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content), SAFETENSORS
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path} is a damaged {SAFETENSORS} file: {one_line(error)}"
            ) from None
    raise CheckpointError(f"checkpoint {path} {describe_file(path, content)}")


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} is not a file")
        if size > MAX_BYTES:
            raise CheckpointError(f"checkpoint {path} has {size:,} bytes, more than {MAX_BYTES:,}")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {one_line(error)}") from None


def _pickle_of(path: Path, content: bytes) -> bytes:
    """Return the pickle in a zip archive that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            if (description := describe_archive(path, archive.namelist())) is not None:
                raise CheckpointError(f"checkpoint {path} {description}")
            # torch.save compresses nothing: a compressed record could unpack to any size.
            if any(record.compress_type != zipfile.ZIP_STORED for record in records) or (
                sum(record.file_size for record in records) > len(content)
            ):
                raise CheckpointError(
                    f"checkpoint {path} holds compressed records, which torch.save does not write"
                )
            damaged = archive.testzip()  # torch.load itself does not compare the checksums
            if damaged is not None:
                raise CheckpointError(
                    f"checkpoint {path} is damaged: its bytes have changed ({sanitize(damaged)})"
                )
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return archive.read(name)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError, EOFError):
        raise CheckpointError(
            f"checkpoint {path} is damaged: it is not a whole zip archive; copy it again"
        ) from None


def _unpickle(path: Path, content: bytes, pickled: bytes) -> Any:  # noqa: ANN401
    if b"bytearray" in pickled:  # which torch allows, of any size
        reason = "holds a bytearray, which no checkpoint needs"
        raise CheckpointError(f"checkpoint {path} {reason}")
    try:
        names: list[Any] = [(NumpyValue, name) for name in NUMPY_NAMES]
        with torch.serialization.safe_globals(names), warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = describe_pickle(path, pickled, str(error))
    except Exception as error:  # torch raises many kinds for a damaged file
        state = "is damaged" if pickled is content else "cannot be loaded"
        reason = f"{state}: {one_line(error)}"
    raise CheckpointError(f"checkpoint {path} {reason}")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights of a network as a `state_dict` of `l1.weight`, `l1.bias`, `l2.weight`, ….

    The tensors are float32, contiguous and finite; anything else is a CheckpointError. See
    `find_linear_layers` for the networks that other programs saved.
    """
    return read_weights(path)[0]


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return `load_state_dict`, and what was taken of the file; None for a plain `state_dict`."""
    content, form = _load(path)
    try:
        found = find_linear_layers(content, is_sorted=form == SAFETENSORS)
    except (ValueError, TypeError) as error:  # of NumPy's, too
        raise CheckpointError(f"checkpoint {path} {one_line(error)}") from None
    state: dict[str, Tensor] = {}
    for number, keys in enumerate(found.keys, start=1):
        for part, key in zip(("weight", "bias"), keys, strict=True):
            tensor = _checked_tensor(path, key, found.tensors[key])
            state[f"l{number}.{part}"] = tensor.t().contiguous() if found.is_transposed else tensor
    taken = "; ".join(filter(None, (form, found.description())))
    return state, taken or None


def _checked_tensor(path: Path, key: str, tensor: Tensor) -> Tensor:
    name = sanitize(key)
    if tensor.dtype not in FLOATS:
        raise CheckpointError(f"checkpoint {path}: {name} is not a dense tensor of floats")
    try:
        check_claimed_bytes(tensor)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: {name} {error}") from None
    tensor = tensor.detach().to(torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"checkpoint {path}: {name} holds values that are NaN or infinite")
    return tensor


def model_from(state: dict[str, Tensor]) -> MLP:
    """Build the network of a `state_dict` that `load_state_dict` returned, in evaluation mode."""
    widths = [len(tensor) for name, tensor in state.items() if name.endswith(".bias")]
    model = MLP(hidden=widths[:-1], num_outputs=widths[-1])
    model.load_state_dict(state)
    return model.eval()


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Return a digest of the weights, whatever file they are in.

    It is the SHA-256 of name, dtype, shape and little-endian bytes of each tensor, by sorted name.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name].detach().cpu().numpy())
        if sys.byteorder == "big":
            array = array.byteswap()
        shape = ",".join(map(str, array.shape))
        digest.update(f"{name}:{array.dtype.name}:{shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

"""Weights on disk: plain `state_dict`s, written atomically and read without trust."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_ce.config import MAX_HIDDEN
from mnist_ce.network import INPUT_SIZE
from mnist_ce.network.model import MLP
from mnist_ce.system.errors import CheckpointError, sanitize
from mnist_ce.system.files import one_line, write_atomically

MAX_BYTES = 1 << 30  # the standard network takes 2.7 MB
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values with `torch.save`; see `write_atomically`."""
    buffer = io.BytesIO()  # to a full disk, `torch.save` raises a RuntimeError
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - the caller checks the content
    """Read a file that `torch.save` wrote, without executing code from it.

    Raises:
        CheckpointError: If the file is missing, damaged, too large or compressed, or contains
            anything but tensors and plain values.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} is not a file")
        if size > MAX_BYTES:
            raise CheckpointError(f"checkpoint {path} has {size:,} bytes, more than {MAX_BYTES:,}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {one_line(error)}") from None
    _check_archive(path, content)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = (
            "it holds more than tensors and plain values, and code is never run from a checkpoint"
        )
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = one_line(error)
    raise CheckpointError(f"checkpoint {path} cannot be loaded: {reason}")


def _check_archive(path: Path, content: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            # torch.save compresses nothing: a compressed record could unpack to any size.
            if any(record.compress_type != zipfile.ZIP_STORED for record in records) or (
                sum(record.file_size for record in records) > len(content)
            ):
                raise CheckpointError(
                    f"checkpoint {path} holds compressed records, which torch.save does not write"
                )
            damaged = archive.testzip()  # torch.load itself does not compare the checksums
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError, EOFError):
        raise CheckpointError(
            f"checkpoint {path} is damaged or is not a file that torch.save wrote"
        ) from None
    if damaged is not None:
        raise CheckpointError(f"checkpoint {path} is damaged: its bytes have changed ({damaged})")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a plain `state_dict` of Linear layers `l1`, `l2`, …, in that order.

    The tensors are float32, contiguous and finite; anything else is a CheckpointError.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        keys = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else ""
        found = f"a dict with the keys {keys}" if keys else f"a {type(content).__name__}"
        raise CheckpointError(
            f"checkpoint {path} holds {found}; a plain state_dict of tensors l1.weight, l1.bias, … "
            "is expected: save model.state_dict()"
        )
    state: dict[str, Tensor] = {}
    inputs = INPUT_SIZE
    for number in range(1, _num_layers(path, content) + 1):
        weight, bias = (content[f"l{number}.{part}"] for part in ("weight", "bias"))
        if weight.dim() != 2 or bias.dim() != 1 or len(bias) != len(weight):
            raise CheckpointError(
                f"checkpoint {path}: l{number}.weight {list(weight.shape)} and l{number}.bias "
                f"{list(bias.shape)} do not belong to one Linear layer"
            )
        if weight.shape[1] != inputs or not len(weight):
            raise CheckpointError(
                f"checkpoint {path}: l{number}.weight has shape {list(weight.shape)}, "
                f"but its input has {inputs} values"
            )
        for part, tensor in (("weight", weight), ("bias", bias)):
            state[f"l{number}.{part}"] = _checked_tensor(path, f"l{number}.{part}", tensor)
        inputs = len(weight)
    return state


def _num_layers(path: Path, content: dict[str, Tensor]) -> int:
    numbers = {
        int(match[1]) for key in content if (match := re.fullmatch(r"l(\d{1,3})\.weight", key))
    }
    num_layers = len(numbers)
    expected = {f"l{n}.{part}" for n in range(1, num_layers + 1) for part in ("weight", "bias")}
    if not num_layers or num_layers > MAX_HIDDEN + 1 or set(content) != expected:
        wrong = sorted(set(content) ^ expected)[:3] if num_layers else list(content)[:3]
        raise CheckpointError(
            f"checkpoint {path} is not a network of Linear layers l1, l2, … with weight and bias "
            f"each (see {sanitize(', '.join(wrong)) or 'its empty state_dict'})"
        )
    return num_layers


def _checked_tensor(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided:
        raise CheckpointError(f"checkpoint {path}: {name} is not a dense tensor of floats")
    # Before any copy: a file of 1.6 kB can hold a tensor of 2^40 elements with stride 0.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"checkpoint {path}: {name} has {tensor.numel():,} values but the file holds fewer"
        )
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

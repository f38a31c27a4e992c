"""Weights on disk: plain `state_dict`s, written atomically and read without trust."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_ce.network.model import MLP
from mnist_ce.runs.linear_layers import find_linear_layers
from mnist_ce.system.errors import CheckpointError
from mnist_ce.system.files import read_regular, write_atomically
from mnist_ce.system.text import one_line, sanitize

MAX_BYTES = 1 << 30  # the standard network takes 2.7 MB
MAX_NAME_LENGTH = 200  # of a class in a pickle
MAX_TENSORS = 10_000  # torch reads so many in 3 s; a network of 63 layers has 126
MAX_HEADER_BYTES = 1 << 20  # of a safetensors file: 100 for each tensor
MAX_OPCODES = 1_500_000  # of a pickle: torch reads so many in 4 s
MAX_VALUES = 2_000_000  # in nested dicts and lists, shared ones counted as often as they are named
MAX_DEPTH = 20
SAFETENSORS = "safetensors"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before version 1.6
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMPY_NAMES = (
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
)
_PACKED = "is compressed, or an archive: unpack it first"
# What the first bytes of a file say that torch.save did not write.
FORMATS: tuple[tuple[bytes, str], ...] = (
    (rb"\0*\Z", "is empty or full of zeros: copy or download it again"),
    (rb"version https://git-lfs", "is a Git LFS pointer: git lfs pull fetches the file itself"),
    (rb"\s*<", "is an HTML or XML page: download the file itself, not the page about it"),
    (rb"\x89PNG|\xff\xd8\xff", "is an image: mnist-ce predict reads it"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|(?s:.{257})ustar", _PACKED),
    (rb"PK", "is a zip archive that torch.save did not write (of TorchScript, Keras or NumPy?)"),
    (rb"\x80", "is a pickle that torch.save did not write"),
    (rb"\x89HDF", "is an HDF5 file, as Keras writes"),
    (rb"\x93NUMPY", "is a NumPy file"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", "is a model of TensorFlow or ONNX"),
    (rb"[\t\n\r -~]+\Z", "is text, not a file that torch.save wrote"),
    (rb"", "is damaged, or of a format not known here"),
)
CONVERSION = "docs/own-network.md says how weights are converted"


class _NumpyValue:
    """Takes the place of NumPy's scalars and arrays in a pickle; no code of NumPy runs."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values with `torch.save`; see `write_atomically`."""
    buffer = io.BytesIO()  # to a full disk, `torch.save` raises a RuntimeError
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def check_claimed_bytes(tensor: Tensor) -> None:
    """Raise a ValueError if a tensor is not dense, or has more elements than its file.

    A file of 1.6 kB can hold a tensor of 2^40 elements with stride 0: check before any copy.
    """
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError("has a tensor that is not dense")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"has a tensor of {tensor.numel():,} values, but the file holds fewer")


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - the caller checks the content
    """Read a file of `torch.save`, in either of its formats, or of safetensors; run no code of it.

    A CheckpointError for any other file, and for more than tensors, plain values and NumPy's.
    """
    with _naming(path):
        return _load(path)[0]


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the weights of a network as a `state_dict` of `l1.weight`, `l1.bias`, `l2.weight`, ….

    The tensors are float32, contiguous and finite; anything else is a CheckpointError. Also return
    what was taken of a file that another program saved; None for a plain `state_dict`.
    """
    with _naming(path):
        content, form = _load(path)
        tensors = find_linear_layers(content, is_ordered=form != SAFETENSORS)
        values = [_to_float32(key, tensor) for key, tensor in tensors.items()]
    keys = list(tensors)
    names = [f"l{i // 2 + 1}.{'bias' if i % 2 else 'weight'}" for i in range(len(keys))]
    renamed = f"{keys[0]} … {keys[-1]} read as {names[0]} … {names[-1]}"
    taken = [form] * bool(form) + [sanitize(renamed)] * (keys != names)
    return dict(zip(names, values, strict=True)), "; ".join(taken) or None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read: {one_line(error)}"
    except (CheckpointError, ValueError) as error:
        reason = one_line(error)
    else:
        return
    raise CheckpointError(f"checkpoint {path} {reason}") from None


def _load(path: Path) -> tuple[Any, str]:
    """Return the content of a file, and the name of its format where that is an unusual one."""
    content = read_regular(path, MAX_BYTES)
    if content.startswith(b"PK"):
        return _unpickle(content, _pickle_of(content)), ""
    if content.startswith(LEGACY_MAGIC):
        return _unpickle(content, content), "torch's legacy format"
    if content[8:9] == b"{" and (length := int.from_bytes(content[:8], "little")) < MAX_BYTES:
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"has a header of {length:,} bytes: there are too many tensors")
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content), SAFETENSORS
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"is a damaged {SAFETENSORS} file: {one_line(error)}") from None
    raise _foreign(content)


def _foreign(content: bytes) -> CheckpointError:
    description = next(text for magic, text in FORMATS if re.match(magic, content[:300]))
    return CheckpointError(description + ("" if ":" in description else f": {CONVERSION}"))


def _pickle_of(content: bytes) -> bytes:
    """Return the pickle in a zip archive that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            names = {name.rpartition("/")[2]: name for name in archive.namelist()}
            if len(records) > MAX_TENSORS + 10:
                raise CheckpointError(f"has more than {MAX_TENSORS:,} tensors")
            if "data.pkl" not in names or "constants.pkl" in names:  # the latter: TorchScript
                raise _foreign(content)
            # torch.save compresses nothing: a compressed record could unpack to any size.
            if any(record.compress_type != zipfile.ZIP_STORED for record in records) or (
                sum(record.file_size for record in records) > len(content)
            ):
                raise CheckpointError("holds compressed records, which torch.save does not write")
            damaged = archive.testzip()  # torch.load itself does not compare the checksums
            if damaged is not None:
                raise CheckpointError(f"is damaged: its bytes have changed ({sanitize(damaged)})")
            return archive.read(names["data.pkl"])
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError, EOFError):
        raise CheckpointError("is damaged: it is not a whole zip archive; copy it again") from None


def _unpickle(content: bytes, pickled: bytes) -> Any:  # noqa: ANN401
    if b"bytearray" in pickled:  # which torch allows, of any size
        raise CheckpointError("holds a bytearray, which no checkpoint needs")
    try:
        _check_pickle(pickled, num_pickles=5 if pickled is content else 1)
        names: list[Any] = [(_NumpyValue, name) for name in NUMPY_NAMES]
        with torch.serialization.safe_globals(names), warnings.catch_warnings(action="ignore"):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"holds {f'an object of {named[1]}' if named else 'code, or is damaged'}, and no code "
            f"is run from a checkpoint: save model.state_dict() alone; {CONVERSION}"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        state = "is damaged" if pickled is content else "cannot be loaded"
        raise CheckpointError(f"{state}: {one_line(error)}") from None
    _check_structure(loaded)
    return loaded


def _check_structure(content: object) -> None:
    """Bound the walks through nested dicts and lists, which may hold each other or themselves."""
    values: list[tuple[Any, int]] = [(content, 0)]
    num_values = 0
    while values:
        value, depth = values.pop()
        num_values += 1
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            raise CheckpointError(
                "holds too many nested dicts and lists: save the state_dict alone"
            )
        if isinstance(value, dict | list | tuple):
            children = value.values() if isinstance(value, dict) else value
            values += [(child, depth + 1) for child in children]


def _check_pickle(pickled: bytes, num_pickles: int) -> None:
    """Bound the time that torch needs to read a pickle, opcode by opcode.

    The regular expressions of torch's error message take 8 s for a name of 10,000 characters, and a
    hundred times as long for ten times as many. A tuple that holds another twice, and so on, takes
    two to the power of its depth as the key of a dict, to be hashed: the stack is followed with the
    number of values in each tuple.
    """
    file, stack, marks, memo = io.BytesIO(pickled), list[int](), list[int](), dict[Any, int]()
    num_tensors = 0
    opcodes = itertools.chain(*(pickletools.genops(file) for _ in range(num_pickles)))
    for number, (opcode, argument, _) in enumerate(opcodes):
        num_tensors += opcode.name == "BINPERSID"
        if number > MAX_OPCODES or num_tensors > MAX_TENSORS:
            raise ValueError(f"it has more than {MAX_TENSORS:,} tensors or {MAX_OPCODES:,} objects")
        if opcode.name == "GLOBAL" and len(str(argument)) > MAX_NAME_LENGTH:
            shown = str(argument)[:MAX_NAME_LENGTH].replace(" ", ".")
            raise pickle.UnpicklingError(f"GLOBAL {shown}")
        before, num_after = opcode.stack_before, len(opcode.stack_after)
        start = len(stack) - len(before)
        if pickletools.markobject in before:
            start = marks.pop() - before.index(pickletools.markobject)
        size = 1 + sum(stack[start:]) if "TUPLE" in opcode.name else 1
        if size > MAX_VALUES:
            raise ValueError(f"it has a tuple of more than {MAX_VALUES:,} values")
        if "GET" in opcode.name:
            size = memo.get(argument, 1)
        elif "PUT" in opcode.name:
            memo[argument] = stack[-1]
            continue
        elif opcode.name == "MARK":
            marks.append(len(stack))
            continue
        del stack[start:]
        stack += [size] * num_after


def _to_float32(key: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"has {sanitize(key)}, which is not a tensor of floats")
    check_claimed_bytes(tensor)
    tensor = tensor.detach().to(torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"has {sanitize(key)}, which holds values that are NaN or infinite")
    return tensor


def model_from(state: dict[str, Tensor], activation: str = "relu") -> MLP:
    """Build the network of a `state_dict` that `read_weights` returned, in evaluation mode."""
    widths = [len(tensor) for name, tensor in state.items() if name.endswith(".bias")]
    model = MLP(hidden=widths[:-1], num_outputs=widths[-1], activation=activation)
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

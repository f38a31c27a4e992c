"""Weights on disk: plain `state_dict`s, written atomically and read without trust."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_ce.config import MAX_HIDDEN
from mnist_ce.network import INPUT_SIZE
from mnist_ce.network.model import MLP
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
MAX_DICTS, MAX_KEY_LENGTH = 1000, 1000
_EXPECTED = "a plain state_dict is expected: save model.state_dict()"
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


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - the caller checks the content
    """Read a file of `torch.save`, in either of its formats, or of safetensors; run no code of it.

    Dicts and lists are nested to a limit, and each tensor is dense and no larger than what the file
    holds of it. A CheckpointError for any other file, and for more than tensors, plain values and
    NumPy's.
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
        storages = {t.data_ptr(): t.nbytes() for t in map(Tensor.untyped_storage, tensors.values())}
        if sum(tensor.nbytes for tensor in tensors.values()) > sum(storages.values()):
            raise ValueError("has layers that share their values: save a copy of each")
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
        loaded, form = _unpickle(content, _pickle_of(content)), ""
    elif content.startswith(LEGACY_MAGIC):
        loaded, form = _unpickle(content, content), "torch's legacy format"
    elif content[8:9] == b"{" and (length := int.from_bytes(content[:8], "little")) < MAX_BYTES:
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"has a header of {length:,} bytes: there are too many tensors")
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            loaded, form = load(content), SAFETENSORS
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"is a damaged {SAFETENSORS} file: {one_line(error)}") from None
    else:
        raise _foreign(content)
    _check_structure(loaded)
    return loaded, form


def _foreign(content: bytes) -> CheckpointError:
    description = next(text for magic, text in FORMATS if re.match(magic, content[:300]))
    return CheckpointError(description + ("" if ":" in description else f": {CONVERSION}"))


def _pickle_of(content: bytes) -> bytes:
    """Return the pickle in a zip archive that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            names = {name.rpartition("/")[2]: name for name in archive.namelist()}
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
        raise ValueError("holds a bytearray, which no checkpoint needs")
    try:
        _check_pickle(pickled, num_pickles=5 if pickled is content else 1)
        names: list[Any] = [(_NumpyValue, name) for name in NUMPY_NAMES]
        with torch.serialization.safe_globals(names), warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"holds {f'an object of {named[1]}' if named else 'code, or is damaged'}, and no code "
            f"is run from a checkpoint: save model.state_dict() alone; {CONVERSION}"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        state = "is damaged" if pickled is content else "cannot be loaded"
        raise ValueError(f"{state}: {one_line(error)}") from None


def _check_structure(content: object) -> None:
    """Bound the walks through nested dicts and lists, which may hold each other or themselves.

    A file of 1.6 kB can hold a tensor of 2^40 elements with stride 0: check before any copy.
    """
    values: list[tuple[Any, int]] = [(content, 0)]
    num_values = 0
    while values:
        value, depth = values.pop()
        num_values += 1
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            raise ValueError("holds too many nested dicts and lists: save the state_dict alone")
        if isinstance(value, dict | list | tuple):
            children = value.values() if isinstance(value, dict) else value
            values += [(child, depth + 1) for child in children]
        elif isinstance(value, Tensor):
            if value.is_nested or value.layout != torch.strided or value.is_meta:
                raise ValueError("has a tensor that is not dense")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(
                    f"has a tensor of {value.numel():,} values, but the file holds fewer"
                )


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


def find_linear_layers(content: object, *, is_ordered: bool = True) -> dict[str, Tensor]:
    """Find the one MLP in a checkpoint: a state_dict, or nested dicts with one among them.

    Return its tensors by key: weight and bias of each layer in turn, from input to output. Nothing
    is copied, and the dtypes are not checked. `is_ordered`: the keys are in the order of the
    layers. The message of a ValueError goes after a file's name.
    """
    if not isinstance(content, Mapping):
        advice = ", or of a list a dict {'0': weight, '1': bias, '2': weight, …}"
        raise ValueError(f"holds a {type(content).__name__}; {_EXPECTED}{advice}")
    tables: list[dict[str, Tensor]] = []
    _collect(content, "", set(), tables)
    networks: list[dict[str, Tensor]] = []
    failures = []
    for tensors in tables:
        num_matrices = sum(tensor.dim() > 1 for tensor in tensors.values())
        if not num_matrices or any(tensors.keys() <= network.keys() for network in networks):
            continue  # no network, or a layer of one: each may have a dict of its own
        try:
            networks.append(_chain(tensors, is_ordered=is_ordered))
        except ValueError as error:
            failures.append((-num_matrices, len(tensors), str(error)))
        if len(networks) > 1:
            names = _shorten([next(iter(network)) for network in networks])
            raise ValueError(f"holds several networks ({names}); save the state_dict of one")
    if networks:
        return networks[0]
    if failures:
        raise ValueError(min(failures)[2])  # that of the innermost dict with all the matrices
    raise ValueError(f"holds no weights (keys: {_shorten([*content]) or 'none'}); {_EXPECTED}")


def _collect(
    content: Mapping[Any, Any], prefix: str, seen: set[int], tables: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Append the tensors of each nested dict, by dotted key, to `tables`; return the outer ones.

    How deep they are is bounded: see `load_tensors`.
    """
    tensors: dict[str, Tensor] = {}
    if "param_groups" in content or id(content) in seen or len(seen) > MAX_DICTS:
        return tensors  # an optimizer's, or one that other dicts hold, too
    seen.add(id(content))
    tables.append(tensors)
    for key, value in content.items():
        if isinstance(key, str) and len(key) > MAX_KEY_LENGTH:
            raise ValueError(f"has a key of {len(key):,} characters")
        if isinstance(key, str) and isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(key, str) and isinstance(value, Mapping):
            tensors |= _collect(value, f"{prefix}{key}.", seen, tables)
    return tensors


def _chain(tensors: Mapping[str, Tensor], *, is_ordered: bool) -> dict[str, Tensor]:
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in tensors.items()
        if tensor.dim() or tensor.is_floating_point()  # no counter, such as `n_averaged`
    }
    weights, biases = ([key for key in shapes if len(shapes[key]) == dim] for dim in (2, 1))
    patterns = [{re.sub(r"\d+", "#", key) for key in keys} for keys in (weights, biases)]
    is_numbered = all(len(names) == 1 for names in patterns)  # `l1.weight`, `l2.weight`, …
    if is_numbered or not is_ordered:
        weights.sort(key=_by_number)
        biases.sort(key=_by_number)
    others = [f"{k} {[*s]}" for k, s in shapes.items() if len(s) not in (1, 2) or 0 in s]
    if others or len(weights) != len(biases):
        raise ValueError(
            f"is not a chain of Linear layers with weight and bias each: {len(weights)} weights, "
            f"{len(biases)} biases ({_shorten(others or [*shapes])}); for another network give its "
            "module, --model FILE.py:CLASS: see docs/own-network.md"
        )
    if len(weights) > MAX_HIDDEN + 1:
        raise ValueError(f"has {len(weights)} layers, more than {MAX_HIDDEN + 1}")
    bias_of = dict(zip(weights, biases, strict=True))
    has_order = is_ordered or is_numbered
    if not has_order and len({shapes[weight] for weight in weights}) < len(weights):
        names = _shorten(weights)
        raise ValueError(f"does not tell the order of {names}, some of one shape: number them")
    chain: dict[str, Tensor] = {}
    width = INPUT_SIZE
    while weights:
        # Of the layers that fit, a square one comes first: after another it would not fit.
        by_width = sorted(weights, key=lambda w: (shapes[w][1] != width, shapes[w][0] != width))
        weight = weights[0] if has_order else by_width[0]
        weights.remove(weight)
        bias = bias_of[weight]
        if shapes[weight] != (*shapes[bias], width):
            raise ValueError(
                f"is no chain of layers: {_shorten([weight])} has shape {list(shapes[weight])} and "
                f"{_shorten([bias])} {list(shapes[bias])}, but the layer's input has {width} values"
            )
        chain |= {weight: tensors[weight], bias: tensors[bias]}
        width = shapes[bias][0]
    return chain


def _by_number(key: str) -> str:
    """Return a key with its numbers padded, so that 10 comes after 9."""
    return re.sub(r"\d+", lambda number: number[0].lstrip("0").zfill(MAX_KEY_LENGTH), key)


def _shorten(names: Sequence[object], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return sanitize(", ".join(map(str, names[:count]))) + more


def _to_float32(key: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"has {sanitize(key)}, which is not a tensor of floats")
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
        shape = ",".join(map(str, array.shape))
        digest.update(f"{name}:{array.dtype.name}:{shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()

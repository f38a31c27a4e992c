"""Files of weights in formats that are not read: what they are, and how to convert them."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from mnist_ce.system.text import sanitize, truncate_middle

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before version 1.6
_CONTAINER_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_UNPACK = "unpack it first"
_TRUSTED = ", if you trust the file, which can run any code"
_TO_PT = "convert it in Python: import torch, {module}; torch.save({value}, 'weights.pt')"


def _in_python(module: str, value: str) -> str:
    return _TO_PT.format(module=module, value=value)


_KERAS = _in_python(
    "keras",
    '{{f\'{{n // 2}}.{{"bias" if n % 2 else "kernel"}}\': w for n, w in '
    "enumerate(keras.models.load_model({file!r}).get_weights())}}",
)
_TENSORFLOW = _in_python(
    "tensorflow as tf",
    "{{v.name: v.numpy() for v in tf.saved_model.load({folder!r}).variables}}",
)
_TF_CHECKPOINT = _in_python(
    "tensorflow as tf",
    "{{k: tf.train.load_variable({stem!r}, k) for k, _ in tf.train.list_variables({stem!r})}}",
)
_ONNX = _in_python(
    "onnx",
    "{{w.name: onnx.numpy_helper.to_array(w) for w in onnx.load({file!r}).graph.initializer}}",
)
_NPY = _in_python("numpy", "numpy.load({file!r}, allow_pickle=True).item()") + _TRUSTED
_NPZ = _in_python("numpy", "dict(numpy.load({file!r}))")
_PICKLE = _in_python("pickle", "pickle.load(open({file!r}, 'rb'))") + _TRUSTED
_TORCHSCRIPT = _in_python("torch.jit", "torch.jit.load({file!r}).state_dict()")
_EXPORTED = _in_python("torch.export", "torch.export.load({file!r}).state_dict")

# By the first bytes: what it is, and what to do.
_BEGINNINGS: Sequence[tuple[bytes | tuple[bytes, ...], str, str]] = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", _KERAS),
    (b"\x93NUMPY", "a NumPy .npy file", _NPY),
    (b"\x80", "a pickle that torch.save did not write", _PICKLE),
    ((b"\x1f\x8b", b"\x78\x9c"), "compressed with gzip or zlib", _UNPACK),
    ((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "compressed with bzip2, xz or zstd", _UNPACK),
    ((b"7z\xbc\xaf", b"Rar!"), "a 7-Zip or RAR archive", _UNPACK),
    ((b"\x89PNG", b"\xff\xd8\xff"), "an image", "read it with: mnist-ce predict"),
)


def describe_file(path: Path, content: bytes) -> str:
    """Say what a file is that no reader takes, by its first bytes, and what to do with it."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    for beginning, what, advice in _BEGINNINGS:
        if content.startswith(beginning):
            return _text(path, what, advice)
    if not content.strip(b"\0"):
        return f"is {'full of zeros' if content else 'empty'}: copy or download it again"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is an HTML or XML page: download the file itself, not the page about it"
    if content[257:262] == b"ustar":
        return _text(path, "a tar archive", _UNPACK)
    if content[-8:] == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" or ".data-000" in path.name:
        return _text(path, "a TensorFlow checkpoint", _TF_CHECKPOINT)
    if content[:2] == b"\x08\x01" or path.suffix == ".pb":  # the version of SavedModel
        return _text(path, "a TensorFlow model", _TENSORFLOW)
    if path.suffix == ".onnx" or re.match(
        rb"\x08[\x02-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", content
    ):
        return _text(path, "an ONNX model", _ONNX)
    try:
        text = sanitize(start.decode("ascii")[:40])
    except UnicodeDecodeError:
        first = content[:4].hex(" ")
        return f"begins with the bytes {first}: it is damaged, or of a format not known here"
    return f"is not a file that torch.save wrote but text: '{text}'"


def describe_archive(path: Path, names: Sequence[str]) -> str | None:
    """Say what a zip archive with these records is; None for one that torch.save wrote."""
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return _text(path, "a TorchScript archive", _TORCHSCRIPT)
    if files & {"archive_format", "serialized_exported_program.json"}:
        return _text(path, "a program of torch.export", _EXPORTED)
    if "data.pkl" in files:
        return None
    if files and all(name.endswith(".npy") for name in files):
        return _text(path, "a NumPy .npz archive", _NPZ)
    if "model.weights.h5" in files:
        return _text(path, "a Keras archive", _KERAS)
    shown = sanitize(", ".join(sorted(files)[:2])) or "nothing"
    return f"is a zip archive of {truncate_middle(shown, 60)}: {_UNPACK}"


def describe_folder(path: Path) -> str | None:
    """Say what a folder without `model.pt` is; None for the folder of a run."""
    if (path / "config.toml").is_file() or (path / "run.json").is_file():
        return None
    if (path / "saved_model.pb").is_file():
        return _text(path / "saved_model.pb", "a TensorFlow model", _TENSORFLOW)
    weights = [p for p in path.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".safetensors")]
    named = f"; name one of its files: {', '.join(sorted(map(str, weights))[:3])}"
    return f"is a folder without a run (it has no model.pt){named if weights else ''}"


def describe_pickle(path: Path, content: bytes, error: str) -> str:
    """Say what a file of torch.save holds beside tensors, and how its state_dict is saved.

    `content` is the pickle, or a file in the legacy format; `error` is torch's message.
    """
    import pickletools

    match = re.search(r"GLOBAL ([\w.]+)", error)
    first, argument, key = "", None, ""
    try:
        pickled = io.BytesIO(content)
        for _ in range(3 if content.startswith(LEGACY_MAGIC) else 0):
            list(pickletools.genops(pickled))
        ops = [(op.name, arg) for op, arg, _ in itertools.islice(pickletools.genops(pickled), 9999)]
        first, argument = next(op for op in ops if op[0] not in ("PROTO", "FRAME"))
        key = next((str(arg) for _, arg in ops if arg in _CONTAINER_KEYS), "")
    except Exception:  # a damaged pickle: many kinds
        first = ""
    is_dict = "DICT" in first or str(argument).startswith("collections")
    if match is None:
        what = "holds a pickle that torch reads only by running code, or is damaged"
    elif is_dict:
        what = f"holds an object of {match[1]} beside tensors and plain values"
    else:
        what = f"holds a whole pickled module ({match[1]})"
    part = ".state_dict()" if match and not is_dict else f"[{key!r}]" if key else ""
    return (
        f"{what}, and code is never run from a checkpoint; convert it in Python: import torch; "
        "torch.save("
        f"torch.load({str(path)!r}, weights_only=False){part}, 'weights.pt'){_TRUSTED}"
    )


def _text(path: Path, what: str, advice: str) -> str:
    stem = re.sub(r"\.(index|data-\d+-of-\d+)$", "", str(path))
    return f"is {what}: {advice.format(file=str(path), folder=str(path.parent), stem=stem)}"

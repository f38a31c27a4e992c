"""Files of weights in formats that are not read: what they are, and how to convert them."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from mnist_ce.system.errors import sanitize, truncate_middle

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before version 1.6
_CONTAINER_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_KERAS = (
    'import torch, keras; torch.save({{f\'{{n // 2}}.{{"bias" if n % 2 else "kernel"}}\': w for '
    "n, w in enumerate(keras.models.load_model({file!r}).get_weights())}}, 'weights.pt')"
)
_TENSORFLOW = (
    "import torch, tensorflow as tf; torch.save({{v.name: v.numpy() for v in "
    "tf.saved_model.load({folder!r}).variables}}, 'weights.pt')"
)
_TF_CHECKPOINT = (
    "import torch, tensorflow as tf; r = tf.train.load_checkpoint({stem!r}); torch.save("
    "{{k: r.get_tensor(k) for k in r.get_variable_to_shape_map()}}, 'weights.pt')"
)
_NUMPY = "import torch, numpy; torch.save(dict(numpy.load({file!r})), 'weights.pt')"
_NPY = (
    "import torch, numpy; torch.save(numpy.load({file!r}, allow_pickle=True).item(), 'weights.pt')"
)
_ONNX = (
    "import torch, onnx; torch.save({{w.name: onnx.numpy_helper.to_array(w) for w in "
    "onnx.load({file!r}).graph.initializer}}, 'weights.pt')"
)
_TORCHSCRIPT = "import torch; torch.save(torch.jit.load({file!r}).state_dict(), 'weights.pt')"
_EXPORTED = "import torch; torch.save(torch.export.load({file!r}).state_dict, 'weights.pt')"
_PICKLE = "import torch, pickle; torch.save(pickle.load(open({file!r}, 'rb')), 'weights.pt')"
_TRUSTED = ", if you trust the file, which can run any code"

# By the first bytes: what it is, and what to do.
_BEGINNINGS: Sequence[tuple[bytes, str, str]] = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", f"in Python: {_KERAS}"),
    (b"\x93NUMPY", "a NumPy .npy file", f"in Python: {_NPY}{_TRUSTED}"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"GGUF", "a GGUF file of a language model", "name a file of this network's weights"),
    (b"\x89PNG", "an image", "read it with: mnist-ce predict"),
    (b"\xff\xd8\xff", "an image", "read it with: mnist-ce predict"),
    (b"%PDF", "a PDF document", "name a file of weights"),
    (b"\x80", "a pickle that torch.save did not write", f"in Python: {_PICKLE}{_TRUSTED}"),
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
        return _text(path, "a tar archive", "unpack it first: tar -xf {file!r}")
    if content[4:8] == b"TFL3":
        return _text(path, "a TensorFlow Lite model", "convert the Keras model it was made from")
    if content[-8:] == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" or ".data-000" in path.name:
        return _text(path, "a TensorFlow checkpoint", f"in Python: {_TF_CHECKPOINT}")
    if content[:2] == b"\x08\x01" or path.suffix == ".pb":  # SavedModel's version is 1
        return _text(path, "a TensorFlow model", f"in Python: {_TENSORFLOW}")
    if path.suffix == ".onnx" or re.match(
        rb"\x08[\x02-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", content
    ):
        return _text(path, "an ONNX model", f"in Python: {_ONNX}")
    if path.suffix == ".msgpack":
        return "is a msgpack file, as Flax writes: save the parameters with safetensors instead"
    try:
        text = start.decode("ascii")
    except UnicodeDecodeError:
        first = content[:4].hex(" ")
        return f"begins with the bytes {first}: it is damaged, or of a format not known here"
    return f"is not a file that torch.save wrote but text: '{sanitize(text[:40])}'"


def describe_archive(path: Path, names: Sequence[str]) -> str | None:
    """Say what a zip archive with these records is; None for one that torch.save wrote."""
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return _text(path, "a TorchScript archive", f"in Python: {_TORCHSCRIPT}")
    if files & {"archive_format", "serialized_exported_program.json"}:
        return _text(path, "a program of torch.export", f"in Python: {_EXPORTED}")
    if "data.pkl" in files:
        return None
    if files and all(name.endswith(".npy") for name in files):
        return _text(path, "a NumPy .npz archive", f"in Python: {_NUMPY}")
    if "model.weights.h5" in files:
        return _text(path, "a Keras archive", f"in Python: {_KERAS}")
    shown = sanitize(", ".join(sorted(files)[:2])) or "nothing"
    return f"is a zip archive of {truncate_middle(shown, 60)}: unpack it first"


def describe_folder(path: Path) -> str | None:
    """Say what a folder with weights in another form is, or name its files; None for a run's."""
    if (path / "config.toml").is_file() or (path / "run.json").is_file():
        return None
    if (path / "saved_model.pb").is_file():
        return _text(path / "saved_model.pb", "a TensorFlow model", f"in Python: {_TENSORFLOW}")
    if (path / "data.pkl").is_file():
        return "is an unpacked file of torch.save: zip it again, without compression (zip -0 -r)"
    weights = [p for p in path.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".safetensors")]
    named = f"; name one of its files: {', '.join(sorted(map(str, weights))[:3])}"
    return f"is a folder without a run (it has no model.pt){named if weights else ''}"


def describe_pickle(path: Path, content: bytes, error: str) -> str:
    """Say what a file of torch.save holds beside tensors, and how its state_dict is saved.

    `content` is the pickle, or a file in the legacy format; `error` is torch's message.
    """
    import pickletools

    match = re.search(r"GLOBAL ([\w.]+)", error)
    name = match[1] if match else ""
    loaded, is_whole, key = f"torch.load({str(path)!r}, weights_only=False)", False, ""
    try:
        pickled = io.BytesIO(content)
        for _ in range(3 if content.startswith(LEGACY_MAGIC) else 0):
            list(pickletools.genops(pickled))
        steps = [
            (op.name, arg) for op, arg, _ in itertools.islice(pickletools.genops(pickled), 9999)
        ]
    except Exception:  # a damaged pickle: many kinds
        steps = []
    else:
        first, argument = next(((op, a) for op, a in steps if op not in ("PROTO", "FRAME")))
        is_whole = "BINUNICODE" in first or first in ("GLOBAL", "MARK")  # not a dict
        is_whole = is_whole and not str(argument).startswith("collections")
        key = next((str(a) for _, a in steps if a in _CONTAINER_KEYS), key)
    if not name:
        what = "holds a pickle that torch reads only by running code, or is damaged"
    elif is_whole:
        what = f"holds a whole pickled module ({name})"
    else:
        what = f"holds an object of {name} beside tensors and plain values"
    part = ".state_dict()" if is_whole else f"[{key!r}]" if key else ""
    return (
        f"{what}, and code is never run from a checkpoint: in Python: import torch; "
        f"torch.save({loaded}{part}, 'weights.pt'){_TRUSTED}"
    )


def _text(path: Path, what: str, advice: str) -> str:
    stem = re.sub(r"\.(index|data-\d+-of-\d+)$", "", str(path))
    return f"is {what}: {advice.format(file=str(path), folder=str(path.parent), stem=stem)}"

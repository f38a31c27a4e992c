"""The chain of Linear layers in a checkpoint, found by the tensors' shapes, not by their names."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_ce.config import MAX_HIDDEN
from mnist_ce.network import INPUT_SIZE
from mnist_ce.system.text import sanitize

MAX_DICTS = 1000  # nested in a checkpoint
_EXPECTED = "a plain state_dict is expected: save model.state_dict()"
# What tells a weight from a bias in a key: `fc1.weight`, `dense/kernel:0`, `W1`.
_PART = re.compile(r"(?i)(?<![a-z])(?:(weights?|kernels?|w)|bias(?:es)?|b)(?![a-z])")
_BIAS_OF = {"weights": "biases", "kernels": "biases", "w": "b"}


class NumpyValue:
    """Takes the place of NumPy's scalars, arrays and types in a pickle; no code of NumPy runs."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def to_tensor(self) -> Tensor | None:
        """Return the values of an array of floats; None for anything else."""
        try:
            _, shape, dtype, is_fortran, data = self.state
            code, order = dtype.arguments[0], dtype.state[1]
            values = np.frombuffer(data, {"f2": "f2", "f4": "f4", "f8": "f8"}[code])
        except (ValueError, TypeError, AttributeError, LookupError):
            return None
        values = values.byteswap() if order == ">" else values  # torch runs on little-endian CPUs
        shaped = values.reshape(shape, order="F" if is_fortran else "C")
        return torch.from_numpy(np.array(shaped, order="C"))


@dataclass(frozen=True)
class LinearLayers:
    """A network in a checkpoint: the keys of weight and bias by layer, from input to output."""

    tensors: Mapping[str, Tensor]
    keys: Sequence[tuple[str, str]]
    is_transposed: bool  # weights are [inputs, outputs], as in Keras
    ignored: Sequence[str]  # counters, which no forward pass uses

    def description(self) -> str:
        """Say which tensors were taken; empty for `l1`, `l2`, … and nothing else."""
        plain = [(f"l{n}.weight", f"l{n}.bias") for n in range(1, len(self.keys) + 1)]
        renamed = f"{self.keys[0][0]} … {self.keys[-1][1]} read as {plain[0][0]} … {plain[-1][1]}"
        parts = [] if list(self.keys) == plain else [renamed]
        parts += ["weights transposed from [inputs, outputs]"] if self.is_transposed else []
        parts += [f"{_some(self.ignored)} ignored"] if self.ignored else []
        return ", ".join(parts)


def find_linear_layers(content: object, *, is_sorted: bool = False) -> LinearLayers:
    """Find the one network in a checkpoint: a state_dict, or nested dicts with one among them.

    Nothing is copied: a tensor may claim any shape. `is_sorted`: the keys do not have the layers'
    order.

    Raises:
        ValueError: If there is no such network, or several; the message goes after a file's name.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}; {_EXPECTED}")
    return _find(content, "", is_sorted=is_sorted)


def _find(content: Mapping[Any, Any], prefix: str, *, is_sorted: bool) -> LinearLayers:
    tensors = {prefix + key: tensor for key, tensor in _flatten(content, set())}
    if not any(tensor.dim() > 1 for tensor in tensors.values()):
        keys = sanitize(", ".join(map(str, list(content)[:4]))) or "none"
        raise ValueError(f"holds no weights (keys: {keys}); {_EXPECTED}")
    try:
        return _find_chain(tensors, is_sorted=is_sorted)
    except ValueError:
        nested = {
            key: value
            for key, value in content.items()
            if isinstance(value, Mapping) and any(t.dim() > 1 for _, t in _flatten(value, set()))
        }
        if len(nested) == 1:
            ((key, value),) = nested.items()
            return _find(value, f"{prefix}{key}.", is_sorted=is_sorted)
        found = []
        for key, value in nested.items():
            with contextlib.suppress(ValueError):
                _find(value, prefix, is_sorted=is_sorted)
                found.append(key)
        if len(found) > 1:
            raise ValueError(
                f"holds several networks ({_some(found)}); keep one of them, in Python: "
                f"torch.save(torch.load(FILE)[{found[0]!r}], 'weights.pt')"
            ) from None
        raise


def _flatten(content: Mapping[Any, Any], seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts by dotted key, except those of an optimizer."""
    if "param_groups" in content or id(content) in seen or len(seen) > MAX_DICTS:
        return
    seen.add(id(content))  # a pickle can hold a dict that holds itself
    for key, value in content.items():
        tensor = value.to_tensor() if isinstance(value, NumpyValue) else value
        if isinstance(key, str) and isinstance(tensor, Tensor):
            yield key, tensor
        elif isinstance(key, str) and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", tensor) for name, tensor in _flatten(value, seen))


def _find_chain(tensors: Mapping[str, Tensor], *, is_sorted: bool) -> LinearLayers:
    weights: dict[str, str] = {}  # the key by the layer's name
    biases: dict[str, str] = {}
    ignored, wrong = [], []
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"has {sanitize(key)}, which is not a dense tensor of floats")
        match = _part(key)
        if not tensor.dim() and not tensor.is_floating_point():
            ignored.append(key)  # `n_averaged`, for example
        elif match and tensor.dim() == (2 if match[1] else 1):
            (weights if match[1] else biases)[key[: match.start()] + key[match.end() :]] = key
        else:
            wrong.append(f"{key} {list(tensor.shape)}")
    lonely = [
        *(weights[n] for n in weights.keys() - biases),
        *(biases[n] for n in biases.keys() - weights),
    ]
    missing = sorted({_other_part(key) for key in lonely} - tensors.keys())
    if missing or wrong:
        lists = [("missing", missing), ("unexpected", wrong)]
        shown = "; ".join(f"{title}: {_some(names)}" for title, names in lists if names)
        raise ValueError(f"is not a chain of Linear layers with weight and bias each; {shown}")
    if len(weights) > MAX_HIDDEN + 1:
        raise ValueError(f"has {len(weights)} layers, more than {MAX_HIDDEN + 1}")
    shapes = {name: tuple(tensors[key].shape) for name, key in weights.items()}
    widths = {name: len(tensors[key]) for name, key in biases.items()}
    is_transposed = any(shape[0] != widths[name] for name, shape in shapes.items())
    if is_transposed and any(shape[1] != widths[name] for name, shape in shapes.items()):
        name = next(name for name, shape in shapes.items() if shape[0] != widths[name])
        pair = (f"{sanitize(k)} {list(tensors[k].shape)}" for k in (weights[name], biases[name]))
        raise ValueError(f"{' and '.join(pair)} do not belong to one Linear layer")
    square = next((weights[name] for name, shape in shapes.items() if shape[0] == shape[1]), None)
    if is_transposed and square is not None:
        raise ValueError(
            f"has weights of [inputs, outputs], as in Keras, but {sanitize(square)} is square, so "
            "that its shape does not tell; save all weights as [outputs, inputs]"
        )
    sizes = {name: (a, b) if is_transposed else (b, a) for name, (a, b) in shapes.items()}
    shown_as = {n: f"{sanitize(key)} has shape {list(shapes[n])}" for n, key in weights.items()}
    order = _order(sizes, shown_as, is_sorted=is_sorted)
    return LinearLayers(tensors, [(weights[n], biases[n]) for n in order], is_transposed, ignored)


def _part(key: str) -> re.Match[str] | None:
    return next(reversed(list(_PART.finditer(key))), None)


def _other_part(key: str) -> str:
    """Return the key of a weight's bias, or of a bias's weight."""
    match = _part(key)
    assert match is not None
    other = _BIAS_OF.get(match[1].lower(), "bias") if match[1] else "weight"
    return key[: match.start()] + other + key[match.end() :]


def _order(
    sizes: Mapping[str, tuple[int, int]], shown: Mapping[str, str], *, is_sorted: bool
) -> list[str]:
    """Return the layers' names from the input on: as numbered, else as in the file, else by size.

    `sizes` are (inputs, outputs); `shown` has each layer for messages.
    """
    pattern = {name: re.sub(r"\d+", "#", name) for name in sizes}
    are_numbered = len(set(pattern.values())) == 1
    order = sorted(sizes, key=_by_number) if are_numbered or is_sorted else list(sizes)
    widths = [INPUT_SIZE, *(sizes[name][1] for name in order)]
    is_chain = all(sizes[name][0] == width for name, width in zip(order, widths, strict=False))
    if is_chain and (are_numbered or not is_sorted):
        return order
    for a, b in itertools.combinations(order, 2):
        if sizes[a] == sizes[b] and pattern[a] != pattern[b]:
            raise ValueError(
                f"does not tell the order of two layers: {shown[a]}, and {shown[b]}; keep one "
                "network, and number its layers"
            )
    chain: list[str] = []
    while len(chain) < len(order):
        width = sizes[chain[-1]][1] if chain else INPUT_SIZE
        fitting = [name for name in order if sizes[name][0] == width and name not in chain]
        square = [name for name in fitting if sizes[name][1] == width]
        if not fitting:
            name = next(name for name in order if name not in chain)
            raise ValueError(
                f"is no chain of layers: {shown[name]}, but its input has {width} values"
            )
        if len(fitting) > 1 and not square:
            raise ValueError(f"is no chain of layers: {shown[fitting[0]]}, and {shown[fitting[1]]}")
        chain.append((square or fitting)[0])
    return chain


def _by_number(name: str) -> list[int | str]:
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"(\d+)", name))]


def _some(names: Sequence[object]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return sanitize(", ".join(map(str, names[:3]))) + more

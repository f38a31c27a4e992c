"""The chain of Linear layers in a checkpoint, found by the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mnist_ce.config import MAX_HIDDEN
from mnist_ce.network import INPUT_SIZE
from mnist_ce.system.text import sanitize

MAX_DICTS, MAX_KEY_LENGTH = 1000, 1000
_EXPECTED = "a plain state_dict is expected: save model.state_dict()"
_GIVE_MODULE = (
    "give its module, --model FILE.py:CLASS or load_model(path, model=…); see docs/own-network.md"
)
# What a line "key [shape]" says of a network that is no chain of Linear layers, and what to do.
OTHER_NETWORKS = (
    (r"_packed_params|zero_point", "is quantized", "save the network as it was before"),
    (r"weight_mask", "is pruned", "call torch.nn.utils.prune.remove on each layer, then save it"),
    (r"weight_[gu] |parametrizations", "has weight or spectral norm", "remove it, then save"),
    (r"in_proj_weight|\battn|cls_token", "is a transformer", _GIVE_MODULE),
    (r"weight_ih_l\d", "is a recurrent network", _GIVE_MODULE),
    (r" \[\d+(, \d+){2,}\]$", "is a CNN, with convolutions", _GIVE_MODULE),
    (r"running_mean", "has BatchNorm", _GIVE_MODULE),
)


def find_linear_layers(content: object, *, is_ordered: bool = True) -> dict[str, Tensor]:
    """Find the one MLP in a checkpoint: a state_dict, or nested dicts with one among them.

    Return its tensors by key: weight and bias of each layer in turn, from input to output. Nothing
    is copied, since a tensor may claim any shape, and the dtypes are not checked. `is_ordered`: the
    keys are in the order of the layers. The message of a ValueError goes after a file's name.
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
        if len(networks) > 1:
            break
        try:
            networks.append(_chain(tensors, is_ordered=is_ordered))
        except ValueError as error:
            failures.append((-num_matrices, len(tensors), str(error)))
    if len(networks) > 1:
        names = _shorten([next(iter(network)) for network in networks])
        raise ValueError(f"holds several networks ({names}); save the state_dict of one of them")
    if failures and not networks:
        raise ValueError(min(failures)[2])  # that of the innermost dict with all the matrices
    if not networks:
        keys = _shorten([*content]) or "none"
        raise ValueError(
            _other_network([*map(str, content)]) or f"holds no weights (keys: {keys}); {_EXPECTED}"
        )
    return networks[0]


def _other_network(lines: Sequence[str]) -> str:
    """Return what a network is by its keys and shapes, and what to do; empty where unknown."""
    for pattern, what, advice in OTHER_NETWORKS:
        if found := [line for line in lines if re.search(pattern, line)]:
            return f"{what} ({_shorten(found[:1])}): {advice}"
    return ""


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
        if not isinstance(key, str):
            continue
        if len(key) > MAX_KEY_LENGTH:
            raise ValueError(f"has a key of {len(key):,} characters")
        if isinstance(value, Tensor) and not value.is_nested:
            tensors[prefix + key] = value
        elif isinstance(value, Mapping):
            tensors |= _collect(value, f"{prefix}{key}.", seen, tables)
    return tensors


def _chain(tensors: Mapping[str, Tensor], *, is_ordered: bool) -> dict[str, Tensor]:
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in tensors.items()
        if tensor.dim() or tensor.is_floating_point()  # no counter, such as `n_averaged`
    }
    if what := _other_network([f"{key} {list(shape)}" for key, shape in shapes.items()]):
        raise ValueError(what)
    weights, biases = ([key for key in shapes if len(shapes[key]) == dim] for dim in (2, 1))
    patterns = [{re.sub(r"\d+", "#", key) for key in keys} for keys in (weights, biases)]
    is_numbered = all(len(names) == 1 for names in patterns)  # `l1.weight`, `l2.weight`, …
    if is_numbered or not is_ordered:
        weights.sort(key=_by_number)
        biases.sort(key=_by_number)
    others = [f"{key} {list(shapes[key])}" for key in shapes if len(shapes[key]) not in (1, 2)]
    if others or len(weights) != len(biases):
        raise ValueError(
            f"is not a chain of Linear layers with weight and bias each: {len(weights)} weights, "
            f"{len(biases)} biases ({_shorten(others or [*shapes])})"
        )
    if len(weights) > MAX_HIDDEN + 1:
        raise ValueError(f"has {len(weights)} layers, more than {MAX_HIDDEN + 1}")
    bias_of = dict(zip(weights, biases, strict=True))
    chain: dict[str, Tensor] = {}
    width = INPUT_SIZE
    for weight in weights if is_ordered or is_numbered else _order_by_width(weights, shapes):
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


def _order_by_width(weights: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Order layers so that each has as many inputs as the one before has outputs."""
    ordered: list[str] = []
    remaining, width = list(weights), INPUT_SIZE
    while remaining:
        # Of the layers that fit, a square one comes first: after another it would not fit.
        remaining.sort(key=lambda key: (shapes[key][1] != width, shapes[key][0] != width))
        if len(remaining) > 1 and shapes[remaining[0]] == shapes[remaining[1]]:
            names = " and ".join(map(sanitize, remaining[:2]))
            raise ValueError(f"does not tell the order of {names}, of one shape: number the layers")
        ordered.append(remaining.pop(0))
        width = shapes[ordered[-1]][0]
    return ordered


def _shorten(names: Sequence[object], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return sanitize(", ".join(map(str, names[:count]))) + more

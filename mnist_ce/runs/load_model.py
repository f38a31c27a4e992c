"""Trained networks, loaded with the meaning of their outputs."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from torch import nn

from mnist_ce.network.model import ACTIVATIONS, MLP, as_module, as_network, unwrapped
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.runs.checkpoint import load_tensors, model_from, read_weights, weights_sha256
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir, find_checkpoint
from mnist_ce.system.errors import CheckpointError, RunError, UsageError
from mnist_ce.system.files import as_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and the meaning of its outputs."""

    model: nn.Module
    """Maps float32 [batch, 784] to logits [batch, outputs]."""
    path: Path
    class_names: tuple[str, ...]
    """What each class means; (no, yes) for a network with one output."""
    objective: Objective
    record: RunRecord | None = field(repr=False)
    """The `run.json` beside the checkpoint."""
    weights_sha256: str
    conversion: str | None = None
    """What was taken of a file that another program wrote; None for a plain `state_dict`."""
    temperature: float = 1.0
    """See `Calibration`, as for `rejection_threshold`."""
    rejection_threshold: float | None = None
    input_mean: float = 0.0
    """The network's input is (pixel/255 - input_mean) / input_std."""
    input_std: float = 1.0

    @property
    def mlp(self) -> MLP:
        """The network, where it must be an MLP; a UsageError if it is not."""
        if not isinstance(self.model, MLP):
            raise UsageError(f"{self.path} is not an MLP")
        return self.model

    @property
    def dataset(self) -> str | None:
        """The name of the dataset it was trained on; None where no record says so."""
        return self.record.dataset if self.record else None

    @property
    def reads_digits(self) -> bool:
        """Whether its inputs are digits, whatever its classes are."""
        if self.dataset in (None, "custom"):
            return len(self.class_names) in (2, 10)
        digits = {str(digit) for digit in range(10)}
        return all(name.removeprefix("not ") in digits for name in self.class_names)

    @property
    def labels(self) -> tuple[int, ...]:
        """The label in its dataset of each class, such as 3 and 8 with `data.classes = [3, 8]`."""
        every = tuple(range(len(self.class_names)))
        chosen = self.record.flat_config.get("data.classes") if self.record else None
        fits = not isinstance(self.objective, Binary) and len(chosen or ()) == len(every)
        return tuple(chosen) if chosen and fits else every

    @property
    def label(self) -> str:
        return (self.record.name if self.record else None) or str(self.path)


class NetworkOptions(TypedDict, total=False):
    """How the weights of another program become a network: see `load_model`."""

    model: nn.Module | str | None
    activation: str | None
    input_mean: float
    input_std: float


def load_model(
    checkpoint: str | Path | nn.Module | TrainedModel | None = None,
    output: str | Path = "checkpoints",
    *,
    model: nn.Module | str | None = None,
    activation: str | None = None,
    input_mean: float = 0.0,
    input_std: float = 1.0,
) -> TrainedModel:
    """Load a network by path, run or name, or take a module as it is.

    Args:
        checkpoint: A file, a run's directory or name, shipped weights (`world`, or `mnist` alias
            `pretrained`), or `latest`: the newest finished multi-class run of at least ten classes
            in `output`; None: that run, or else `mnist`. A `TrainedModel` stays as it is, but for
            another input scale; a module is as `model`.
        output: The directory of the runs.
        model: A module of your own, which gets the weights of `checkpoint`; without one it keeps
            its own. It maps float32 [batch, 1, 28, 28] or [batch, 784] to [batch, outputs].
            `FILE.py:NAME` is an instance in a file, which is run, or what the class or function of
            that name returns without arguments.
        activation: A name in `ACTIVATIONS`: what is between the layers of weights that another
            program trained, ReLU by default.
        input_mean: For a network trained on normalised pixels: (pixel/255 - mean) / std.
        input_std: See `input_mean`.

    Raises:
        CheckpointError: If there is no such checkpoint, or it needs a module that is not given.
        RunError: If the record beside it is damaged.
        TypeError: If an argument is of another type.
        UsageError: If an option is wrong, or the module is not such a network.
    """
    if activation not in (None, *ACTIVATIONS):
        raise UsageError(f"--activation {activation}: must be one of {', '.join(ACTIVATIONS)}")
    if not (math.isfinite(input_mean) and math.isfinite(input_std) and input_std):
        raise UsageError(
            f"--input-mean {input_mean}, --input-std {input_std}: must be finite numbers, and the "
            "latter not 0"
        )
    is_loaded = isinstance(checkpoint, TrainedModel)
    if isinstance(checkpoint, nn.Module):
        checkpoint, model = None, checkpoint
    if [is_loaded, model is not None, activation is not None].count(True) > 1:
        raise UsageError("a module has its own activation, a TrainedModel its module: leave it out")
    if isinstance(checkpoint, TrainedModel):
        is_unscaled = (input_mean, input_std) == (0.0, 1.0)
        scaled = replace(checkpoint, input_mean=input_mean, input_std=input_std)
        return checkpoint if is_unscaled else scaled
    if not isinstance(checkpoint, str | Path | None):
        raise TypeError(f"checkpoint must be a path or a name, not {checkpoint!r:.60}")
    module = None if model is None else as_module(model)
    path = Path(model if isinstance(model, str) else type(module).__name__)
    record, conversion = None, None
    if module is None or checkpoint is not None:
        path = find_checkpoint(checkpoint, as_path(output))
        record = _record_beside(path)
    if module is None:
        if name := ((record and record.custom) or {}).get("model"):
            kind = name.rpartition(".")[2]
            raise CheckpointError(
                f"{path} has the weights of {name}, a module of your own; give it again: --model "
                f"FILE.py:{kind}, or in Python load_model({str(path)!r}, model={kind}())"
            )
        if record is not None and activation not in (None, "relu"):
            raise UsageError(f"--activation {activation}: {path} is of a run, which has ReLU")
        weights, *taken = read_weights(path)
        module = model_from(weights, activation or "relu")
        if record is None and len(module.layers) > 1:
            name = {"relu": "ReLU", "none": "nothing"}.get(module.activation, module.activation)
            taken.append(f"read with {name} between the layers")
        if conversion := "; ".join(filter(None, taken)) or None:
            logger.info(f"checkpoint {path}: {conversion}")
    elif checkpoint is not None:
        state = load_tensors(path)
        try:
            module.eval().load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = f"does not fit {type(module).__name__}: {' '.join(str(error).split())}"
            raise CheckpointError(f"{path} {reason}") from None
    network, num_outputs = as_network(module)
    try:
        class_names = (record or RunRecord()).classes(num_outputs)
        calibration = (record or RunRecord()).calibration
    except ValueError as error:
        raise CheckpointError(f"{RunDir(path.parent).record_path}: {error}") from None
    return TrainedModel(
        model=network,
        path=path,
        class_names=class_names,
        objective=Binary() if num_outputs == 1 else Multiclass(),
        record=record,
        weights_sha256=weights_sha256(unwrapped(network).state_dict()),
        conversion=conversion,
        temperature=calibration.temperature,
        rejection_threshold=calibration.rejection_threshold,
        input_mean=input_mean,
        input_std=input_std,
    )


def needs_options(checkpoint: object, output: str | Path = "checkpoints") -> bool:
    """Whether a checkpoint is no run, or a run of a module, so that `NetworkOptions` are for it."""
    if not isinstance(checkpoint, str | Path):
        return False
    record = _record_beside(find_checkpoint(checkpoint, as_path(output)))
    return record is None or bool((record.custom or {}).get("model"))


def _record_beside(path: Path) -> RunRecord | None:
    run = RunDir(path.parent)
    try:
        return run.read_record()
    except RunError:
        # Beside a file of another name, a `run.json` may be some other program's.
        if path in (run.model_path, run.best_path):
            raise
        return None

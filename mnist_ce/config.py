"""The typed settings of a run: their defaults, their limits, and the layers they come from.

Built-in defaults < a TOML file or shipped config < the environment (`MNIST_CE_DATA_DIR`) < named
flags < `--set section.key=value`. An unknown key, a wrong type or a value out of range is a
`UsageError` that names the key, where it came from, and the nearest valid key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mnist_ce.system.errors import UsageError
from mnist_ce.system.files import one_line, shipped_dir
from mnist_ce.system.text import sanitize

__all__ = [
    "AugmentConfig",
    "AverageConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "TrainConfig",
    "parse_assignments",
    "resolve_config",
    "shipped_configs",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
MAX_CONFIG_BYTES = 1 << 20
MAX_SHOWN = 100  # characters of a wrong value
MAX_HIDDEN = 63  # as many as a checkpoint may have
MAX_PARAMETERS = 100_000_000  # 400 MB of weights, and as much momentum; MNIST needs a hundredth
Width = Annotated[int, Field(ge=1, le=65_536)]


class Section(BaseModel):
    """A table of the config. Unknown keys and wrong types are errors; values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(Section):
    """Which images the network learns from, and where they lie."""

    dataset: Literal["auto", "mnist", "fashion-mnist", "kmnist", "synthetic"] = "auto"
    """`auto` is MNIST where it lies or can be downloaded, else the built-in synthetic digits."""
    dir: str = Field(default="data", min_length=1)
    """The folder that holds the datasets, or receives them."""
    mirror: str = ""
    """The only address to download from; empty: the ones torchvision knows."""
    validation_size: Count = 0
    """How many training images are held out to choose by; 0: none."""
    classes: tuple[Count, ...] = Field(default=(), strict=False)
    """The classes to keep, renumbered in this order; empty: all."""


class ModelConfig(Section):
    """The shape of the network: 784 inputs, these widths, one logit per class."""

    hidden: tuple[Width, ...] = Field(default=(520, 320, 240, 120), strict=False)
    """The widths of the hidden layers, each followed by a ReLU."""


class ObjectiveConfig(Section):
    """What is minimised."""

    kind: Literal["multiclass", "binary"] = "multiclass"
    """`multiclass`: cross-entropy over the classes; `binary`: yes or no, with one logit."""
    positive: Count = 7
    """The class that counts as yes where the kind is `binary`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of each target that is spread evenly over all classes."""
    positive_weight: Positive = 1.0
    """`binary`: how many times the loss of a yes counts; above 1, fewer are missed."""


class TrainConfig(Section):
    """How long and on what the network is trained."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 9
    """How many times each training image is seen."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step; the last batch of an epoch holds the rest."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Makes initial weights, order, distortions and the validation split."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; only `auto` chooses."""
    threads: Count = 0
    """CPU threads; 0: what torch chooses."""
    step: Literal["auto", "plain", "fast", "cuda-graph"] = "auto"
    """How one optimisation step is computed; the result is the same."""
    test_every: Count = 1
    """Test after every so many epochs; 0: at the end only."""
    patience: Count = 0
    """Stop after so many epochs without a better validation result; 0: never."""


class OptimizerConfig(Section):
    """Stochastic gradient descent, as in `torch.optim.SGD`."""

    learning_rate: Positive = 0.01
    """The rate; with a schedule, the highest one."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The share of the last update that is kept."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: NotNegative = 0.0
    """The L2 penalty's factor, on all parameters."""


class ScheduleConfig(Section):
    """How the learning rate changes, as in `torch.optim.lr_scheduler`."""

    kind: Literal["constant", "one-cycle", "cosine", "step"] = "constant"
    """Per step for `one-cycle` and `cosine`, per epoch for `step`."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`one-cycle`: the share of steps in which the rate rises."""
    initial_divisor: Annotated[float, Field(ge=1)] = 25.0
    """`one-cycle`: the first rate is the highest divided by this."""
    final_divisor: Annotated[float, Field(ge=1)] = 10_000.0
    """`one-cycle`: the last rate is the first divided by this."""
    anneal: Literal["cosine", "linear"] = "cosine"
    """`one-cycle`: the shape of rise and fall."""
    final_fraction: Fraction = 0.0
    """`cosine`: the last rate as a share of the first."""
    step_epochs: Annotated[int, Field(ge=1)] = 3
    """`step`: epochs between two drops."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`step`: what each drop multiplies the rate by."""


class AverageConfig(Section):
    """An exponential moving average of the weights, used instead of the last ones."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the average kept at each step; 0: no averaging."""


class AugmentConfig(Section):
    """Strengths of the random distortions of training images; all 0: none."""

    rotation_degrees: NotNegative = 0.0
    """Rotations up to this, either way."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Enlarging or shrinking by up to this fraction, per axis."""
    shear: NotNegative = 0.0
    """Slant by up to this many pixels per pixel."""
    shift_pixels: NotNegative = 0.0
    """Shifts up to this many pixels, per axis."""
    elastic_pixels: NotNegative = 0.0
    """The standard deviation of the smooth displacement, in pixels."""
    elastic_grid: Annotated[int, Field(ge=2, le=28)] = 6
    """Control points of the smooth displacement, per side."""
    flagged_ones: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of ones that get an upstroke, as Europeans write them; see docs/log.md."""
    final_epochs: Count = 0
    """How many epochs at the end go without distortion."""

    def strengths(self) -> dict[str, Any]:
        """Return the arguments of `data.augment.Augment`."""
        return self.model_dump(exclude={"final_epochs", "flagged_ones"})


class RunConfig(Section):
    """Where a run is kept and how much it tells."""

    output: str = Field(default="checkpoints", min_length=1)
    """The folder that holds the runs."""
    name: str = ""
    """The run's name; empty: made from dataset, recipe and time."""
    log_interval: Annotated[int, Field(ge=1)] = 10
    """Batches between two lines of `--verbose`."""
    save_every_seconds: Positive = 30.0
    """The longest time that a crash can cost."""
    plots: bool = True
    """Whether the run's pictures are drawn at its end."""


class Config(Section):
    """All settings of a run."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    average: AverageConfig = Field(default_factory=AverageConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    @property
    def has_fixed_length(self) -> bool:
        """Whether the schedule's shape depends on the number of epochs."""
        return self.schedule.kind in ("one-cycle", "cosine")

    @model_validator(mode="after")
    def _network_fits(self) -> Config:
        widths = [784, *self.model.hidden, 10]
        num_parameters = sum((a + 1) * b for a, b in pairwise(widths))
        if num_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"model.hidden makes a network of {num_parameters:,} parameters; "
                f"{MAX_PARAMETERS:,} are the most"
            )
        if len(self.model.hidden) > MAX_HIDDEN:
            raise ValueError(f"model.hidden has more than {MAX_HIDDEN} layers")
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> Config:
        if self.train.patience and not self.data.validation_size:
            raise ValueError(
                "train.patience needs a validation split: set data.validation_size, "
                "for example to 5000"
            )
        if self.train.patience and self.has_fixed_length:
            raise ValueError(
                f"train.patience cannot be used with schedule.kind = '{self.schedule.kind}', "
                "whose length is fixed; use 'constant' or 'step'"
            )
        if self.optimizer.nesterov and not self.optimizer.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        if self.objective.kind == "binary" and self.objective.label_smoothing:
            raise ValueError("objective.label_smoothing is for kind = 'multiclass' only")
        if self.objective.kind != "binary" and self.objective.positive_weight != 1:
            raise ValueError("objective.positive_weight is for kind = 'binary' only")
        if len(set(self.data.classes)) != len(self.data.classes):
            raise ValueError("data.classes names a class twice")
        if len(self.data.classes) == 1:
            raise ValueError("data.classes needs at least two classes")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain tables with every key, ready for TOML or JSON."""
        return self.model_dump(mode="json")


def shipped_configs() -> dict[str, Path]:
    """Return the recipes that come with the program, by name."""
    return {path.stem: path for path in sorted(shipped_dir("configs").glob("*.toml"))}


def resolve_config(
    config: str | Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Lay the layers over each other and check the result.

    Args:
        config: A TOML file, or the name of a shipped config (`fast`); None: defaults only.
        flags: Values by dotted key (`train.epochs`); None values are left out.
        environment: Environment variables; None: those of the process.

    Raises:
        UsageError: If a file cannot be read or a key or value is not valid.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def lay(layer: Mapping[str, Any], source: str) -> None:
        for key, value in layer.items():
            section, _, name = key.partition(".")
            if not name:
                merged[section] = value  # not a table: the check below says so
            else:
                table = merged.setdefault(section, {})
                if not isinstance(table, dict):
                    raise UsageError(f"{source}: {sanitize(section)} must be a table")
                table[name] = value
            sources[key] = source

    if config is not None:
        path = _config_path(config)
        lay(dict(_flatten(_read_toml(path))), str(path))
    data_dir = (os.environ if environment is None else environment).get("MNIST_CE_DATA_DIR")
    if data_dir:
        lay({"data.dir": data_dir}, "MNIST_CE_DATA_DIR")
    for key, value in (flags or {}).items():
        if value is not None:
            lay({key: value}, "the command line")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(error, sources)) from None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Read `section.key=value` texts; a value is read as TOML, else as a string.

    Raises:
        UsageError: If a text is not of that form.
    """
    return dict(map(_assignment, texts))


def _config_path(config: str | Path) -> Path:
    path = Path(config)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(config) in shipped:
        return shipped[str(config)]
    names = ", ".join(shipped)
    near = _nearest(str(config), list(shipped))
    raise UsageError(f"config {config} is neither a file nor one of {names}{near}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"config {path} has more than {MAX_CONFIG_BYTES:,} bytes")
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {one_line(error)}") from None
    except (ValueError, RecursionError) as error:  # ValueError: numbers of 5000 digits, too
        raise UsageError(f"config {path} is not valid TOML: {one_line(error)}") from None


def _flatten(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, table in tables.items():
        if isinstance(table, dict):
            yield from ((f"{section}.{key}", value) for key, value in table.items())
            if not table:
                yield section, table
        else:
            yield section, table


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or key.count(".") != 1:
        shown = sanitize(text)
        raise UsageError(f"--set {shown}: write section.key=value, for example train.epochs=3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key, value.strip()


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Turn the first thing that pydantic found wrong into one line."""
    detail = error.errors(include_url=False)[0]
    place = [str(part) for part in detail["loc"]]
    key = ".".join(place[:2])
    source = sources.get(key)
    key = sanitize(key)
    where = f" (from {source})" if source else ""
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key}{where}{_nearest(key, _valid_keys(place))}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    message = detail["msg"].replace("Input should be", "must be").replace("String should", "must")
    if detail["type"] == "string_pattern_mismatch" and key == "train.device":
        message = "must be auto, cpu, mps, cuda or cuda:N"
    return f"{key} = {_shown(detail['input'])}{where}: {message}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "…"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _valid_keys(place: Sequence[str]) -> list[str]:
    sections = Config.model_fields
    if len(place) == 1:
        return list(sections)
    return [
        f"{section}.{key}"
        for section, field in sections.items()
        for key in getattr(field.annotation, "model_fields", {})
    ]


def _nearest(key: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if not near and "." in key:
        name = key.rpartition(".")[2]
        near = [
            full
            for full in valid
            if difflib.SequenceMatcher(None, name, full.rpartition(".")[2]).ratio() > 0.75
        ][:1]
    return f"; did you mean {near[0]}?" if near else ""

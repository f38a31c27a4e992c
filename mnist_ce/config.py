"""The typed settings of a run, with their defaults, limits and layers.

Built-in defaults < a TOML file or shipped config < the environment (`MNIST_CE_DATA_DIR`) < named
flags < `--set section.key=value`. An unknown key, a wrong type or a value out of range is a
`UsageError` that names the key, where it came from, and the nearest valid key.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from mnist_ce.network import HIDDEN, INPUT_SIZE
from mnist_ce.system.errors import UsageError
from mnist_ce.system.files import as_path, local_path, read_regular, shipped_dir
from mnist_ce.system.text import (
    CONTROL_CHARACTERS,
    did_you_mean,
    one_line,
    percent_hint,
    plain_reason,
    sanitize,
    truncate_middle,
)

logger = logging.getLogger(__name__)
_warn_once = functools.cache(logger.warning)  # however many layers and files hold an old key

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def _local(text: str) -> str:
    try:
        return local_path(text)
    except UsageError as error:
        raise ValueError(error) from None


PathText = Annotated[str, AfterValidator(_local)]  # or a dataset, such as csv:PATH
MAX_CONFIG_BYTES = 1 << 20
MAX_SHOWN = 100  # characters of a wrong value
MAX_EPOCHS = 100_000  # `report` takes 3 s of CPU more for as many
MAX_HIDDEN = 63  # as many as a checkpoint may have
MAX_PARAMETERS = 100_000_000  # 400 MB of weights, and as much momentum; MNIST needs a hundredth
OWN_DATASET = (
    r"(?P<mnist>mnist\+)?(?P<conversions>((inverted|transposed|mirrored|flipped)\+)*)"
    r"(?P<kind>csv|npz|idx|folder):(?P<path>.+)"
)
DATASETS = rf"^(auto|mnist|fashion-mnist|kmnist|synthetic|{OWN_DATASET})$"
RENAMED_KEYS = {  # the old names stay valid
    "data.drawn": "data.num_synthetic",
    "augment.flagged_ones": "data.upstrokes",
    "augment.upstroke_ones": "data.upstrokes",
    "augment.photographed": "data.thin_copies",
}


ALIASES = {  # other names of keys
    "lr": "learning_rate", "epoch": "epochs", "num_epochs": "epochs", "bs": "batch_size",
    "batch": "batch_size", "layers": "hidden", "hidden_sizes": "hidden", "wd": "weight_decay",
}  # fmt: skip


class Section(BaseModel):
    """A table of the config. Unknown keys and wrong types are errors; values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _has_no_control_characters(cls, value: object) -> object:
        if isinstance(value, str) and re.search(CONTROL_CHARACTERS, value):
            reason = "must be UTF-8 without control characters; write a path with / or in '…'"
            raise PydanticCustomError("control", reason)
        return value


class DataConfig(Section):
    """The images that the network is trained and tested on."""

    dataset: PathText = Field(default="auto", pattern=DATASETS)
    """`auto` is MNIST where it is found or can be downloaded, else the synthetic digits; or
    `mnist`, `fashion-mnist`, `kmnist`, `synthetic`, `csv:FILE`, `npz:FILE`, `idx:DIR`,
    `folder:DIR`, `mnist+folder:DIR` for both, `transposed+csv:FILE`. See docs/own-data.md."""
    dir: PathText = Field(default="data", min_length=1)
    """The folder of the datasets; files are downloaded to it."""
    mirror: str = ""
    """The only address to download from; empty: torchvision's mirrors."""
    classes: tuple[Count, ...] = Field(default=(), strict=False)
    """The classes to keep, renumbered in this order; empty: all."""
    validation_size: Count = 0
    """How many training images are held out for validation; 0: none."""
    num_synthetic: Count = 0
    """How many digits are drawn, in handwriting styles of many countries, and join the training
    images, before the validation split."""
    upstrokes: Fraction = 0.0
    """The fraction of training ones that get an upstroke, as Europeans write them; docs/log.md."""
    thin_copies: Fraction = 0.0
    """The fraction of training images that are added again, as photographs of thin pens are
    read."""


class ModelConfig(Section):
    """The shape of the network: 784 inputs, these widths, one logit per class."""

    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=HIDDEN, strict=False)
    """The widths of the hidden layers, each followed by a ReLU."""


class ObjectiveConfig(Section):
    """The loss that is minimised."""

    kind: Literal["multiclass", "binary"] = "multiclass"
    """`multiclass`: cross-entropy over the classes; `binary`: yes or no, with one logit."""
    positive: Count = 7
    """The class that counts as yes where the kind is `binary`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The fraction of each target that is spread evenly over all classes."""
    positive_weight: Positive = 1.0
    """`binary`: how many times the loss of a yes counts; above 1, fewer are missed."""


class TrainConfig(Section):
    """How long, in what order and on which device the network is trained."""

    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 9
    """How many times each training image is seen."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step; the last batch holds the rest, but a rest of one joins the one before."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # torch's CPU generator uses 32 bits
    """Fixes the initial weights, the order, the distortions and the validation split."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; only `auto` chooses."""
    threads: Count = 0
    """CPU threads; 0: torch's default. The `fast` step gives the same bytes with any number."""
    shares: Annotated[int, Field(ge=1, le=256)] = 2
    """Parts of a batch that the `fast` step computes apart: the most threads that it can use."""
    step: Annotated[
        Literal["auto", "plain", "fast"],
        BeforeValidator(lambda step: "plain" if step == "cuda-graph" else step),  # of older runs
    ] = "auto"
    """How one optimisation step is computed; the result is the same."""
    test_every: Annotated[int, Field(ge=-1)] = 1
    """Test after every so many epochs; 0: at the end only; -1: never, as in a search."""
    patience: Count = 0
    """Stop after so many epochs without a better validation result; 0: never."""
    init: PathText = ""
    """The run, checkpoint or shipped weights to start from; empty: random weights."""


class OptimizerConfig(Section):
    """The optimizer, as in `torch.optim`; what has no key here has torch's default."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """`adam` and `adamw` take the plain step, and a lower rate, such as 0.001."""
    learning_rate: Positive = 0.01
    """The rate; with a schedule, the highest one."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """`sgd`: the fraction of the last update that is added to the next."""
    nesterov: bool = False
    """`sgd`: Nesterov's momentum."""
    weight_decay: NotNegative = 0.0
    """The factor of the L2 penalty, for `adamw` of the decay, on all parameters."""


class ScheduleConfig(Section):
    """How the learning rate changes, as in `torch.optim.lr_scheduler`."""

    kind: Literal["constant", "one-cycle", "cosine", "step"] = "constant"
    """Per step for `one-cycle` and `cosine`, per epoch for `step`."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`one-cycle`: the fraction of steps in which the rate rises."""
    initial_divisor: Annotated[float, Field(ge=1)] = 25.0
    """`one-cycle`: the first rate is the highest divided by this."""
    final_divisor: Annotated[float, Field(ge=1)] = 10_000.0
    """`one-cycle`: the last rate is the first divided by this."""
    anneal: Literal["cosine", "linear"] = "cosine"
    """`one-cycle`: the shape of rise and fall."""
    final_fraction: Fraction = 0.0
    """`cosine`: the last rate as a fraction of the first."""
    step_epochs: Annotated[int, Field(ge=1)] = 3
    """`step`: epochs between two drops."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`step`: the factor of each drop."""


class AverageConfig(Section):
    """An exponential moving average of the weights, used instead of the last ones."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The weight of the average so far at each step; 0: no averaging."""


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
    final_epochs: Count = 0
    """How many epochs at the end are without distortion."""

    @property
    def distorts(self) -> bool:
        return any(self.model_dump(exclude={"elastic_grid", "final_epochs"}).values())


class RunConfig(Section):
    """The run's folder and its progress output."""

    output: PathText = Field(default="checkpoints", min_length=1)
    """The folder that holds the runs."""
    name: str = ""
    """The run's name; empty: made from dataset, recipe and time."""
    log_interval: Annotated[int, Field(ge=1)] = 10
    """Batches between two rows of `steps.csv` and two lines of `--verbose`."""
    save_every_seconds: Positive = 30.0
    """The longest training time that a crash can lose."""
    plots: bool = True
    """Whether plots are drawn at the end of the run."""


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
        return self.schedule.kind in ("one-cycle", "cosine")

    @model_validator(mode="after")
    def _values_agree(self) -> Config:
        objective, classes = self.objective, self.data.classes
        num_parameters = sum((a + 1) * b for a, b in pairwise([INPUT_SIZE, *self.model.hidden, 10]))
        if num_parameters > MAX_PARAMETERS or len(self.model.hidden) > MAX_HIDDEN:
            raise ValueError(
                f"model.hidden makes a network of {num_parameters:,} parameters; "
                f"{MAX_PARAMETERS:,}, in {MAX_HIDDEN} layers, are the most"
            )
        if self.train.patience and (self.has_fixed_length or not self.data.validation_size):
            raise ValueError(
                "train.patience needs a validation split, data.validation_size = 5000, and no "
                "schedule whose length is fixed, as of 'one-cycle' and 'cosine'"
            )
        if self.optimizer.nesterov and not self.optimizer.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        if (
            objective.label_smoothing
            if objective.kind == "binary"
            else objective.positive_weight != 1
        ):
            raise ValueError(
                "objective.label_smoothing is for kind = 'multiclass' only, and "
                "objective.positive_weight for kind = 'binary'"
            )
        if len(classes) == 1 or len({*classes}) < len(classes):
            raise ValueError("data.classes needs at least two classes, and names each once")
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        return dict(flatten(self.to_dict()))


def shipped_configs() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped_dir("configs").glob("*.toml"))}


def recipe_name(config: str | Path | None) -> str:
    """Return the name of a config in names of runs and in records."""
    stem = re.sub(r"[^\w.+-]+", "-", "default" if config is None else Path(config).stem)
    return stem[:40].strip("-.") or "config"


def resolve_config(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Merge the layers, each over the one before, and check the result.

    `config` is a TOML file, the name of a shipped config (`fast`), or `RunRecord.flat_config`;
    `flags` has values by dotted key (`train.epochs`), None ones left out; `environment` stands for
    the process's own.
    """
    record = {} if config is None else config
    base = ("the run's record", record) if isinstance(record, Mapping) else read_settings(record)
    data_dir = (os.environ if environment is None else environment).get("MNIST_CE_DATA_DIR")
    variable: tuple[str, Mapping[str, Any]] = ("MNIST_CE_DATA_DIR", {"data.dir": data_dir or None})
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in (base, variable, ("", flags or {})):
        for old, value in layer.items():
            if value is not None:
                key = RENAMED_KEYS.get(old, old)
                if key != old:
                    _warn_once(f"{old} is now called {key}")
                merged[key], sources[key] = value, source
    try:
        return Config.model_validate(to_tables(merged))
    except ValidationError as error:
        raise UsageError(_explain(error.errors(include_url=False)[0], sources)) from None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    defaults = Config().flat()
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or key.count(".") != 1:
            near = find_key(key)
            example = f"{near}={sanitize(value)}" if near and value else "train.epochs=3"
            raise UsageError(f"--set {sanitize(text)}: write section.key=value, as in {example}")
        values[key], present = value.strip("\"'"), RENAMED_KEYS.get(key, key)
        section, _, name = present.partition(".")
        if isinstance(defaults.get(present), list):  # 100,50 and [100, 50] and (100 50)
            words = re.findall(r"[^][(),;\s]+", value)
            values[key] = [int(word) if word.isdecimal() else word for word in words]
        elif present in defaults:
            try:
                model = getattr(Config(), section).model_validate_strings({name: values[key]})
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                problem["loc"] = (section, *problem["loc"])
                raise UsageError(_explain(problem, {})) from None
            values[key] = getattr(model, name)
    return values


def find_key(name: str) -> str | None:
    """Return the key that a name means without its section, or with a wrong one."""
    last = name.rpartition(".")[2]
    last = ALIASES.get(last, last)
    return next((key for key in Config().flat() if key.rpartition(".")[2] == last), None)


def check_value(key: str, value: object, source: str) -> None:
    """Raise a UsageError that names the source unless a value is within the limits of its key."""
    for problem in find_problems({key: value}):
        raise UsageError(_explain(problem, {key: source}))


def find_problems(settings: Mapping[str, Any]) -> list[ErrorDetails]:
    """Return what pydantic says of each value, by dotted key, that its key cannot have."""
    try:
        Config.model_validate(to_tables(settings))
    except ValidationError as error:
        return [problem for problem in error.errors(include_url=False) if problem["loc"]]
    return []


def read_settings(config: str | Path) -> tuple[str, dict[str, Any]]:
    shipped, file, content = shipped_configs(), as_path(config), b""
    path = file if file.exists() and not file.is_dir() else shipped.get(str(config))
    if path is None:
        near = did_you_mean(str(config), shipped)
        raise UsageError(f"config {config} is neither a file nor one of {', '.join(shipped)}{near}")
    try:
        content = read_regular(path, MAX_CONFIG_BYTES)
        text = content.decode(json.detect_encoding(content))  # UTF-16 or a mark, from Windows
        return str(path), dict(flatten(tomllib.loads(text)))
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {one_line(error)}") from None
    except (ValueError, RecursionError) as error:  # ValueError: numbers of 5000 digits, too
        hint = "; write a text with \\ in '…', or / in its place" if b"\\" in content else ""
        raise UsageError(f"config {path} is not valid TOML: {one_line(error)}{hint}") from None


def flatten(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, table in tables.items():
        if isinstance(table, dict):
            yield from ((f"{section}.{key}", value) for key, value in table.items())
        else:
            yield section, table


def to_tables(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten`; a value in place of a table stays, which no config can hold."""
    tables: dict[str, Any] = {key: value for key, value in settings.items() if "." not in key}
    for section, _, name in (key.partition(".") for key in settings if "." in key):
        if isinstance(table := tables.setdefault(section, {}), dict):
            table[name] = settings[f"{section}.{name}"]
    return tables


def _explain(detail: ErrorDetails, sources: Mapping[str, str]) -> str:
    place = [str(part) for part in detail["loc"]]
    dotted = ".".join(place[:2])
    key, source = sanitize(dotted), sources.get(dotted)
    where = f" (from {source})" if source else ""
    if detail["type"] == "extra_forbidden":
        valid = list(Config.model_fields if len(place) == 1 else Config().flat())
        return f"unknown key {key}{where}{did_you_mean(find_key(key) or key, valid)}"
    context, message = detail.get("ctx", {}), plain_reason(detail["msg"])
    if "error" in context:
        return str(context["error"])
    if detail["type"] in ("literal_error", "string_pattern_mismatch"):
        forms = _FORMS.get(key) or str(context["expected"]).replace("'", "")
        message = f"must be {forms}"
        path = Path(str(detail["input"]))
        kind = "folder" if path.is_dir() else path.suffix[1:]
        is_path = key == "data.dataset" and kind and f"{kind}:" in forms
        near = did_you_mean(str(path), re.findall(r"[\w-]+", forms))
        message += f"; did you mean {kind}:{path}?" if is_path else near
    if context.keys() & {"le", "lt"} and 1 in context.values():
        message += percent_hint(detail["input"])
    with contextlib.suppress(ValueError, RecursionError):  # an integer of thousands of digits
        return f"{key} = {truncate_middle(repr(detail['input']), MAX_SHOWN)}{where}: {message}"
    return f"{key}{where}: {message}"


_FORMS = {  # of values that a pattern describes
    "train.device": "auto, cpu, mps, cuda or cuda:N",
    "data.dataset": (
        "auto, mnist, fashion-mnist, kmnist, synthetic, csv:FILE, npz:FILE, idx:DIR, folder:DIR "
        "or mnist+folder:DIR"
    ),
}

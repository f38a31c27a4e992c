from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mnist_ce import MLP, evaluate, load_model
from mnist_ce.cli import main
from mnist_ce.data import dataset
from mnist_ce.evaluation.comparison import compare
from mnist_ce.runs.checkpoint import find_linear_layers, read_weights
from mnist_ce.system.errors import CheckpointError, RunError, UsageError
from mnist_ce.training.callbacks import TrainResult

pytestmark = pytest.mark.usefixtures("small_data")


class Foreign(nn.Module):
    """Another program's network, which happens to name its layers l1 to l5."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(784, 520), nn.Linear(520, 320), nn.Linear(320, 240)
        self.l4, self.l5 = nn.Linear(240, 120), nn.Linear(120, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 784)
        for layer in (self.l1, self.l2, self.l3, self.l4):
            x = torch.relu(layer(x))
        logits: torch.Tensor = self.l5(x)
        return logits


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.1307, 0.3081)])
def test_a_foreign_state_dict_computes_what_its_own_network_does(
    tmp_path: Path, mean: float, std: float
) -> None:
    torch.manual_seed(3)
    network = Foreign()
    torch.save(network.state_dict(), tmp_path / "foreign.pt")
    report = evaluate(load_model(tmp_path / "foreign.pt", input_mean=mean, input_std=std))
    images = (report.images.float() / 255 - mean) / std
    with torch.no_grad():
        predictions = network(images.unsqueeze(1)).argmax(dim=1)
    assert report.result.num_correct == int((predictions == report.result.labels).sum())
    assert read_weights(tmp_path / "foreign.pt")[0].keys() == network.state_dict().keys()
    network.load_state_dict(load_model(tmp_path / "foreign.pt").model.state_dict())


State = dict[str, torch.Tensor]


def renamed(state: State, *names: str) -> State:
    """Give the layers of a state_dict other names, in their order."""
    return {f"{names[int(key[1]) - 1]}.{key[3:]}": tensor for key, tensor in state.items()}


class Harm:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


torch.manual_seed(5)
NET = MLP([12, 12, 9], 10)
OPTIMIZER = torch.optim.Adam(NET.parameters())
NET(torch.zeros(1, 784)).sum().backward()
OPTIMIZER.step()  # after which it has tensors of the weights' shapes
WEIGHTS = {key: tensor.clone() for key, tensor in NET.state_dict().items()}
AVERAGED = dict(torch.optim.swa_utils.AveragedModel(nn.DataParallel(NET)).state_dict())
LIGHTNING = {
    "epoch": np.int64(3),
    "best": np.float64(0.5),
    "history": np.zeros(3),
    "rng": torch.get_rng_state(),
    "state_dict": {f"model._orig_mod.{key}": tensor for key, tensor in WEIGHTS.items()},
    "optimizer_states": [OPTIMIZER.state_dict()],
    "callbacks": {"checkpoint": {"best_model_score": torch.tensor(0.9)}},
}
TRAINING = {"net": WEIGHTS, "optimizer": OPTIMIZER.state_dict(), "loss": torch.tensor(0.1)}
LAYERS = {
    f"d_{n}": {part: WEIGHTS[f"l{n}.{part}"] for part in ("weight", "bias")} for n in (1, 2, 3, 4)
}
CASES: dict[str, tuple[object, str]] = {
    "wrappers": (AVERAGED, "module.module.l1.weight … module.module.l4.bias read as l1.weight"),
    "lightning": (LIGHTNING, "state_dict.model._orig_mod.l1.weight"),
    "training": (TRAINING, "net.l1.weight"),
    "beside a matrix": ({"net": WEIGHTS, "other": {"cov": torch.zeros(3, 3)}}, "net.l1.weight"),
    "sequential": (renamed(WEIGHTS, "0", "2", "8", "10"), "0.weight … 10.bias"),
    "sorted": (dict(sorted(renamed(WEIGHTS, "a9", "a10", "a11", "a100").items())), "a9"),
    "reversed": (dict(reversed(WEIGHTS.items())), ""),
    "by width": (renamed(WEIGHTS, "stem", "fc1", "fc2", "classifier"), "stem.weight … classifier"),
    "nested": ({"p": LAYERS}, "p.d_1.weight"),
}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_the_weights_of_other_programs_are_found(
    tmp_path: Path, name: str, form: str, log_lines: Callable[[], list[str]]
) -> None:
    content, taken = CASES[name]
    path = tmp_path / "weights"
    if form == "safetensors":
        if not isinstance(content, dict) or not all(torch.is_tensor(t) for t in content.values()):
            pytest.skip("safetensors holds tensors only")
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    trained = load_model(path)
    state = trained.model.state_dict()
    assert list(state) == list(WEIGHTS)
    assert all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)
    formats = {"zip": "", "legacy": "torch's legacy format", "safetensors": "safetensors"}
    for part in (taken, formats[form]):
        assert part in (trained.conversion or "")
    assert log_lines() == [f"checkpoint {path}: {trained.conversion}"] * bool(trained.conversion)
    report = evaluate(path).to_dict()
    assert report["conversion"] == trained.conversion


NAME = strategies.text("abcxyz_.", min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(
    widths=strategies.lists(strategies.integers(1, 6), max_size=5),
    names=strategies.lists(NAME, min_size=6, max_size=6, unique=True),
    parts=strategies.sampled_from([("weight", "bias"), ("kernel", "b"), ("0", "1"), ("W", "B")]),
    path=strategies.lists(NAME, max_size=3),
    seed=strategies.integers(0, 99),
)
def test_an_mlp_is_found_under_any_names_and_among_anything(
    widths: list[int], names: list[str], parts: tuple[str, str], path: list[str], seed: int
) -> None:
    state = MLP(widths, 10).state_dict()
    tensors = list(state.values())
    keys = [f"{name}/{part}" for name in names for part in parts][: len(tensors)]
    content: dict[str, object] = dict(zip(keys, tensors, strict=True))
    for key in path:
        beside = {"epoch": 3, "vector": torch.zeros(2), "other": {"cov": torch.zeros(3, 3)}}
        items = [*beside.items(), (f"{key}!", content), ("me", content)]
        random.Random(seed).shuffle(items)
        content = dict(items)
    found = find_linear_layers(content)
    assert all(a is b for a, b in zip(found.values(), tensors, strict=True))


@pytest.mark.parametrize("is_legacy", [False, True])
def test_no_code_runs_from_a_pickle_of_any_format(
    tmp_path: Path, is_legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for harm in (Harm(Path.touch, Path("x")), Harm(exec, "open('x', 'w')"), Harm(np.fromfile, "x")):
        for content in (harm, {**WEIGHTS, "more": harm}):
            torch.save(content, "c.pt", _use_new_zipfile_serialization=not is_legacy)
            with pytest.raises(CheckpointError, match="no code is run"):
                load_model("c.pt")
            Path("c.pt").write_bytes(pickle.dumps(content))
            with pytest.raises(CheckpointError, match="a pickle that torch"):
                load_model("c.pt")
    torch.save({**WEIGHTS, "more": bytearray(8)}, "c.pt")  # `bytearray(2**40)` has as few bytes
    with pytest.raises(CheckpointError, match="bytearray"):
        load_model("c.pt")
    assert not Path("x").exists()


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else WEIGHTS


def shared(depth: int) -> dict[str, Any]:
    """Return dicts each of which holds the next one twice."""
    content: dict[str, Any] = WEIGHTS
    for _ in range(depth):
        content = {"a": content, "b": content}
    return content


def tuples(depth: int) -> object:
    """Return tuples each of which holds the next one twice."""
    content: object = None
    for _ in range(depth):
        content = (content, content)
    return content


def endless(content: Any, add: Callable[[Any, Any], object]) -> dict[str, Any]:
    add(content, content)
    return {**WEIGHTS, "more": content}


CHAIN, NESTED = "is not a chain|is no chain|holds no weights", "too many nested dicts and lists"
STRUCTURES: dict[str, tuple[Callable[[], object], str]] = {
    "deep": (lambda: nested(60), NESTED),
    "shared": (lambda: shared(60), NESTED),
    "dict in itself": (lambda: endless({}, lambda a, b: a.update(me=b)), NESTED),
    "list in itself": (lambda: endless([], list.append), NESTED),
    "lists": (lambda: {**WEIGHTS, "more": [[[0] * 999] * 999] * 999}, NESTED),
    "nested tensor": (
        lambda: {**WEIGHTS, "l1.weight": torch.nested.nested_tensor([WEIGHTS["l1.weight"]])},
        "not dense",
    ),
    "sparse": (lambda: {**WEIGHTS, "l1.weight": WEIGHTS["l1.weight"].to_sparse()}, "not dense"),
    "digits": (lambda: {f"l{'9' * 5000}": WEIGHTS["l1.bias"], **WEIGHTS}, "a key of 5,001 char"),
    "keys": (lambda: dict[object, object](WEIGHTS) | {("a", 1): 0, 3: {}, None: {}}, ""),
    "many": (
        lambda: {**WEIGHTS, **{f"x{i}": {"w": torch.zeros(1, 1)} for i in range(1500)}},
        CHAIN,
    ),
    "tuples": (lambda: {**WEIGHTS, "more": tuples(60)}, "tuple"),
    "no outputs": (
        lambda: {"l1.weight": torch.zeros(0, 784), "l1.bias": torch.zeros(0)},
        r"is not a chain .*l1.weight \[0, 784\]",
    ),
    "escape": (lambda: {"\x1b]0;x\7": {**WEIGHTS}}, ""),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("name", STRUCTURES)
def test_no_structure_takes_long(tmp_path: Path, name: str) -> None:
    content, message = STRUCTURES[name]
    torch.save(content(), tmp_path / "c.pt")
    began_at = time.process_time()
    if message:
        with pytest.raises(CheckpointError, match=message) as error:
            load_model(tmp_path / "c.pt")
        assert str(error.value).isprintable()
    else:
        assert (load_model(tmp_path / "c.pt").conversion or "").isprintable()
    assert time.process_time() - began_at < 10


@pytest.mark.parametrize("threshold", ["high", True, [1]])
def test_a_threshold_that_is_no_number_is_named(tmp_path: Path, threshold: object) -> None:
    run = shutil.copytree(load_model("mnist").path.parent, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["prediction"]["rejection_threshold"] = threshold
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="rejection_threshold must be a number"):
        load_model(run)


def test_a_strangers_record_beside_a_bare_network_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"accuracy": 1}')
    for name in ("weights.pt", "model.pt"):
        torch.save(MLP([8], 10).state_dict(), tmp_path / name)
    assert load_model(tmp_path / "weights.pt").record is None
    with pytest.raises(RunError, match="format_version"):
        load_model(tmp_path / "model.pt")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    split = dataset.load_dataset("mnist", Path()).train
    return split.images, split.labels


FOREIGN: dict[str, tuple[nn.Module, float, float, str]] = {
    "relu": (nn.ReLU(), 0, 1, ""),
    "tanh": (nn.Tanh(), 0.1307, 0.3081, "--activation tanh --input-mean 0.1307 --input-std 0.3081"),
    "bytes": (nn.ReLU(), 0, 1 / 255, "--input-mean 0 --input-std 0.00392157"),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_state_dict_does_not_say_is_said_and_found_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    activation, mean, std, options = FOREIGN[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 64), activation, nn.Linear(64, 32), activation)
    net.append(nn.Linear(32, 10))
    images, labels = digits()
    inputs = (images.flatten(1) / 255 - mean) / std
    adam = torch.optim.Adam(net.parameters(), lr=0.005)
    for _ in range(250):
        adam.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]
        adam.step()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    test = dataset.load_dataset("mnist", Path()).test
    with torch.no_grad():
        logits = net((test.images.flatten(1) / 255 - mean) / std)
    expected = int((logits.argmax(1) == test.labels).sum())
    command = ["evaluate", str(tmp_path / "w.pt"), "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "read with ReLU between the layers" in json.loads(out)["conversion"]
    named = re.search(r"correctly, but \d+ with (.*): evaluate it so", err)
    assert (named[1] if named else "") == options
    assert main([*command, *options.split()]) == 0  # the advice, followed
    out, err = capsys.readouterr()
    assert "warning" not in err
    if options:
        assert json.loads(out)["correct"] == pytest.approx(expected, abs=1)


def test_a_run_needs_no_advice_and_takes_no_activation(
    tmp_path: Path, train_small: Callable[..., TrainResult], log_warnings: Callable[[], list[str]]
) -> None:
    train_small("a", train__epochs=1, optimizer__learning_rate=1e-4)
    assert evaluate("a", output=tmp_path).result.accuracy < 0.5
    assert not log_warnings()
    with pytest.raises(UsageError, match="is of a run, which has ReLU"):
        load_model("a", tmp_path, activation="tanh")
    shutil.copy(tmp_path / "a" / "model.pt", tmp_path / "foreign.pt")
    trained = load_model(tmp_path / "foreign.pt", activation="tanh")
    report = compare("a", tmp_path / "foreign.pt", output=tmp_path, activation="tanh")
    assert [r.trained.mlp.activation for r in report.reports] == ["relu", "tanh"]
    for more in ({"activation": "relu"}, {"model": MLP([8])}):
        with pytest.raises(UsageError, match="leave"):
            load_model(trained, **more)


def test_other_networks_are_named(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"conv1.weight \[2, 1, 3, 3\].* --model FILE.py:"):
        load_model(tmp_path / "w.pt")


FILE = """
from __future__ import annotations
from dataclasses import dataclass
from beside import WIDTH
from torch import nn

@dataclass
class Config:
    width: int = WIDTH

class CNN(nn.Sequential):
    def __init__(self, *more):
        layers = nn.Conv2d(1, Config().width, 5, stride=4), nn.ReLU(), nn.Flatten()
        super().__init__(*layers, nn.Linear(36 * Config().width, 10), *more)

def make():
    return CNN()

instance, number = CNN(), 3
soft = CNN(nn.Softmax(dim=1))
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("WIDTH = 2")
    (tmp_path / "net.py").write_text(FILE)
    return str(tmp_path / "net.py")


@pytest.mark.usefixtures("one_thread")
def test_a_module_in_a_file_has_the_whole_program(
    tmp_path: Path, net: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--output", str(tmp_path)]
    given = ["--model", f"{net}:CNN"]
    small = [
        "--epochs",
        "2",
        "--lr",
        "0.1",
        "--set",
        "data.validation_size=200",
        "--set",
        "run.plots=false",
    ]
    assert main(["train", *runs, "--name", "own", *given, *small, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["recipe"], record["custom"]) == ("CNN", {"model": "net.CNN"})
    shutil.copy(tmp_path / "own" / "model.pt", tmp_path / "w.pth")
    save_image = Image.fromarray(digits()[0][0].numpy())
    save_image.resize((280, 280)).save(tmp_path / "x.png")
    for name, command in (
        ("CNN", ["evaluate", "own"]),
        ("make", ["compare", "mnist", "own", str(tmp_path / "w.pth")]),
        ("CNN", ["predict", str(tmp_path / "x.png"), "--checkpoint", "own"]),
        ("instance", ["explain", str(tmp_path / "x.png"), "--checkpoint", "own"]),
        ("instance", ["report", "own"]),
    ):
        assert main([*command, *runs, "--model", f"{net}:{name}"]) == 0, command
    capsys.readouterr()
    assert main(["evaluate", "own", *runs]) == 1
    advice = re.search(r"--model FILE.py:\w+", capsys.readouterr().err)
    assert advice is not None
    assert main(["evaluate", "own", *runs, *advice[0].replace("FILE.py", net).split()]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":CNM", "KeyError: 'CNM'; did you mean CNN?"),
        (":number", "'int' object is not callable"),
        (":Config", "must be a torch.nn.Module, not Config"),
        ("", "name a file and a class in it, as in net.py:CNN"),
        ("x:CNN", "name a file and a class in it, as in net.py:CNN"),
    ],
)
def test_a_file_without_such_a_module(
    net: str, name: str, message: str, refused: Callable[..., tuple[int, str]]
) -> None:
    code, error = refused("evaluate", "mnist", "--model", net + name)
    assert code == 2
    assert message in error


def test_probabilities_in_place_of_logits_are_named(
    net: str, log_warnings: Callable[[], list[str]]
) -> None:
    load_model(model=f"{net}:soft")
    assert ["are probabilities" in line for line in log_warnings()] == [True]
    load_model(model=f"{net}:CNN")
    assert len(log_warnings()) == 1

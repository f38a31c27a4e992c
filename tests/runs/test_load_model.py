from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mnist_ce import MLP, evaluate, load_model
from mnist_ce.runs.checkpoint import load_state_dict
from mnist_ce.system.errors import CheckpointError

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
    assert load_state_dict(tmp_path / "foreign.pt").keys() == network.state_dict().keys()
    network.load_state_dict(load_model(tmp_path / "foreign.pt").model.state_dict())


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def renamed(state: Mapping[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    """Give the layers of a state_dict other names, in their order."""
    keys = {f"l{number}": name for number, name in enumerate(names, 1)}
    return {keys[(parts := key.split("."))[0]] + "." + parts[1]: t for key, t in state.items()}


def layer_of(state: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    return {part: state[f"l{number}.{part}"] for part in ("weight", "bias")}


class Harm:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


torch.manual_seed(5)
NET = MLP([12, 12, 9], 10)
KERAS_NET = weights_of(MLP([12, 9], 10))
OPTIMIZER = torch.optim.Adam(NET.parameters())
NET(torch.zeros(1, 784)).sum().backward()
OPTIMIZER.step()  # after which it has tensors of the weights' shapes
PLAIN = {key: tensor.clone() for key, tensor in weights_of(NET).items()}
LIGHTNING = {
    "epoch": np.int64(3),
    "best": np.float64(0.5),
    "rng": torch.get_rng_state(),
    "state_dict": {f"model._orig_mod.{key}": tensor for key, tensor in PLAIN.items()},
    "optimizer_states": [OPTIMIZER.state_dict()],
    "callbacks": {"checkpoint": {"best_model_score": torch.tensor(0.9)}},
}
TRAINING = {"net": PLAIN, "optimizer": OPTIMIZER.state_dict(), "loss": torch.tensor(0.1)}
AVERAGED = weights_of(torch.optim.swa_utils.AveragedModel(nn.DataParallel(NET)))
KERAS = {
    f"net/dense_{key[1]}/{'kernel' if tensor.dim() == 2 else 'bias'}:0": tensor.t()
    for key, tensor in KERAS_NET.items()
}
NUMPY = {key.replace("weight", "w").replace("bias", "b"): t.numpy() for key, t in PLAIN.items()}
CASES: dict[str, tuple[object, str]] = {
    "wrappers": (AVERAGED, "module.module.l1.weight … module.module.l4.bias read as l1.weight"),
    "lightning": (LIGHTNING, "state_dict.model._orig_mod.l1.weight"),
    "training": (TRAINING, "net.l1.weight"),
    "sequential": (renamed(PLAIN, "0", "2", "8", "10"), "0.weight … 10.bias"),
    "numbered": (dict(sorted(renamed(PLAIN, *(f"a{n}" for n in (9, 10, 11, 100))).items())), "a9"),
    "reversed": (dict(reversed(PLAIN.items())), ""),
    "in order": (renamed(PLAIN, "stem", "body", "neck", "head"), "stem.weight … head.bias"),
    "nested": ({"p": {f"d_{k}": dict(layer_of(PLAIN, k)) for k in range(1, 5)}}, "p.d_1.weight"),
    "numpy": (NUMPY, "l1.w … l4.b"),
    "keras": (KERAS, "transposed from [inputs, outputs]"),
}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_the_weights_of_other_programs_are_taken_for_what_they_are(
    tmp_path: Path, name: str, form: str, log_lines: Callable[[], list[str]]
) -> None:
    content, taken = CASES[name]
    path = tmp_path / "weights"
    if form == "safetensors":
        if not isinstance(content, dict) or not all(torch.is_tensor(t) for t in content.values()):
            pytest.skip("safetensors holds tensors only")
        if name == "in order":
            pytest.skip("safetensors does not keep the order")
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    trained = load_model(path)
    expected = KERAS_NET if name == "keras" else PLAIN
    state = trained.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    formats = {"zip": "", "legacy": "torch's legacy format", "safetensors": "safetensors"}
    for part in (taken, formats[form]):
        assert part in (trained.conversion or "")
    assert log_lines() == [f"checkpoint {path}: {trained.conversion}"] * bool(trained.conversion)


def test_the_evaluation_says_what_was_taken(tmp_path: Path) -> None:
    torch.save({"net": PLAIN}, tmp_path / "x.pt")
    content = evaluate(tmp_path / "x.pt").to_dict()
    assert content["conversion"] == "net.l1.weight … net.l4.bias read as l1.weight … l4.bias"


@pytest.mark.parametrize("is_legacy", [False, True])
def test_no_code_runs_from_a_pickle_of_any_format(
    tmp_path: Path, is_legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for harm in (Harm(Path.touch, Path("x")), Harm(exec, "open('x', 'w')"), Harm(np.fromfile, "x")):
        for content in (harm, {**PLAIN, "more": harm}):
            torch.save(content, "c.pt", _use_new_zipfile_serialization=not is_legacy)
            with pytest.raises(CheckpointError, match="code is never run"):
                load_model("c.pt")
            Path("c.pt").write_bytes(pickle.dumps(content))
            with pytest.raises(CheckpointError, match="a pickle that torch"):
                load_model("c.pt")
    torch.save({**PLAIN, "more": bytearray(8)}, "c.pt")  # `bytearray(2**40)` has as few bytes
    with pytest.raises(CheckpointError, match="bytearray"):
        load_model("c.pt")
    assert not Path("x").exists()

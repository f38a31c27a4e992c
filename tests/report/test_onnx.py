from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_ce import load_model
from mnist_ce.cli import main
from mnist_ce.network.model import MLP
from mnist_ce.report.onnx import export, onnx_model
from mnist_ce.runs.checkpoint import save_tensors
from mnist_ce.system.errors import CheckpointError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("small_data")


def save_network(path: Path, *, num_outputs: int = 10, **record: object) -> MLP:
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = MLP(num_outputs=num_outputs)
    save_tensors(path, dict(model.state_dict()))
    if record:
        content = {"format_version": 1, "dataset": "mnist", "name": "../../x", **record}
        (path.parent / "run.json").write_text(json.dumps(content))
    return model


def exported(checkpoint: Path, input_mean: float = 0.0, input_std: float = 1.0) -> Path:
    trained = load_model(checkpoint, input_mean=input_mean, input_std=input_std)
    return export(trained, file=checkpoint.with_suffix(".onnx")).path


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("num_images", [1, 7, 300])
def test_any_batch_gives_the_logits_of_torch(tmp_path: Path, num_images: int) -> None:
    model = save_network(tmp_path / "net.pt")
    result = export(load_model(tmp_path / "net.pt"), file=tmp_path / "net.onnx")
    assert result.num_checked == 1000
    assert result.max_difference < 1e-5
    images = torch.rand(num_images, 1, 28, 28)
    (logits,) = session(result.path).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, model(images).detach().numpy(), atol=1e-5)


def test_the_metadata_says_how_to_use_the_file(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(9)] + ["größer"]
    record: dict[str, Any] = {"class_names": names, "prediction": {"temperature": 1.5}}
    save_network(tmp_path / "run" / "model.pt", **record)
    path = exported(tmp_path / "run" / "model.pt")
    found = session(path)
    (images,), (logits,) = found.get_inputs(), found.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(float)")
    assert images.shape == ["batch", 1, 28, 28]
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    metadata = found.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == names
    assert metadata["input_scaling"] == "pixel / 255"
    assert metadata["probabilities"] == "softmax(logits / temperature)"
    assert metadata["temperature"] == "1.5"
    assert metadata["weights_sha256"] == load_model(tmp_path / "run").weights_sha256


def test_a_yes_no_network_is_exported_and_a_foreign_networks_scaling_recorded(
    tmp_path: Path,
) -> None:
    save_network(tmp_path / "run" / "model.pt", num_outputs=1, class_names=["not 7", "7"])
    path = exported(tmp_path / "run" / "model.pt")
    metadata = session(path).get_modelmeta().custom_metadata_map
    assert metadata["probabilities"] == "sigmoid(logits)"
    assert json.loads(metadata["class_names"]) == ["not 7", "7"]

    save_network(tmp_path / "net.pt")
    path = exported(tmp_path / "net.pt", input_mean=0.1307, input_std=0.3081)
    metadata = session(path).get_modelmeta().custom_metadata_map
    assert metadata["input_scaling"] == "(pixel / 255 - input_mean) / input_std"
    assert (metadata["input_mean"], metadata["input_std"]) == ("0.1307", "0.3081")


def test_the_graph_is_as_plain_as_the_network_and_always_the_same(tmp_path: Path) -> None:
    save_network(tmp_path / "net.pt")
    graph = onnx_model(load_model(tmp_path / "net.pt")).graph
    assert [node.op_type for node in graph.node] == ["Flatten", *["Gemm", "Relu"] * 4, "Gemm"]
    assert [weights.name for weights in graph.initializer][:2] == ["l1.weight", "l1.bias"]
    first = exported(tmp_path / "net.pt").read_bytes()
    assert exported(tmp_path / "net.pt").read_bytes() == first


@pytest.mark.parametrize(
    ("checkpoint", "file"),
    [("run/model.pt", "run.onnx"), ("run/best.pt", "best.onnx"), ("bare/model.pt", "model.onnx")],
)
def test_the_file_is_named_after_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: str,
    file: str,
) -> None:
    record: dict[str, Any] = {} if "bare" in checkpoint else {"class_names": list("0123456789")}
    save_network(tmp_path / checkpoint, **record)
    monkeypatch.chdir(tmp_path)
    assert main(["export", checkpoint, "--json"]) == 0
    out, err = capsys.readouterr()
    metadata = json.loads(out)
    assert metadata["path"] == file
    assert metadata["num_bytes"] == (tmp_path / file).stat().st_size
    assert f"checkpoint {checkpoint}" in err


def test_a_file_of_other_predictions_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(tmp_path / "net.pt")
    original = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, images: original(self, images).flip(1))
    target = tmp_path / "a.onnx"
    target.write_text("before")
    message = r"was not exported: predictions .* differ on \d+ of 1000"
    with pytest.raises(CheckpointError, match=message):
        export(load_model(tmp_path / "net.pt"), file=target)
    assert target.read_text() == "before"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["net.pt", "--file", "/dev/null/a.onnx"], 1, "Not a directory"),
        (["nothing.pt"], 1, "nothing.pt is neither a file nor a run"),
        (["net.pt", "--input-std", "0"], 2, "--input-std = 0.0: must be a finite number above 0"),
    ],
)
def test_what_cannot_be_exported_is_one_error_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    save_network(tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., tuple[int, str]], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"error: export needs the package {package}: pip install 'mnist-ce[export]'"
    assert refused("export") == (2, message)

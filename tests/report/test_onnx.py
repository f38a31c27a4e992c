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
from mnist_ce.report.onnx import export
from mnist_ce.runs.checkpoint import save_tensors
from mnist_ce.system.errors import CheckpointError

Capsys = pytest.CaptureFixture[str]
MonkeyPatch = pytest.MonkeyPatch
Refused = Callable[..., tuple[int, str]]
pytest.importorskip("onnx")
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
    return Path(export(trained, file=checkpoint.with_suffix(".onnx")).path)


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def metadata_of(path: Path) -> Any:
    return session(path).get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("num_images", [1, 7, 300])
def test_any_batch_gives_the_logits_of_torch(tmp_path: Path, num_images: int) -> None:
    model = save_network(tmp_path / "net.pt")
    result = export(load_model(tmp_path / "net.pt"), file=tmp_path / "net.onnx")
    assert result.num_checked == 1000
    assert result.max_difference < 1e-5
    images = torch.rand(num_images, 1, 28, 28)
    (logits,) = session(Path(result.path)).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, model(images).detach().numpy(), atol=1e-5)


def test_the_metadata_says_how_to_use_the_file(tmp_path: Path) -> None:
    names = [*"012345678", "größer"]
    checkpoint = tmp_path / "run" / "model.pt"
    save_network(checkpoint, class_names=names, prediction={"temperature": 1.5})
    path = exported(checkpoint)
    (images,), (logits,) = session(path).get_inputs(), session(path).get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 1, 28, 28])
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    metadata = metadata_of(path)
    assert json.loads(metadata["class_names"]) == names
    expected = {
        "input_scaling": "pixel / 255",
        "probabilities": "softmax(logits / temperature)",
        "temperature": "1.5",
        "weights_sha256": load_model(checkpoint).weights_sha256,
    }
    assert expected.items() <= metadata.items()
    before = path.read_bytes()
    assert exported(checkpoint).read_bytes() == before
    save_network(checkpoint, num_outputs=1, class_names=["not 7", "7"])
    metadata = metadata_of(exported(checkpoint, input_mean=0.1307, input_std=0.3081))
    expected = {
        "probabilities": "sigmoid(logits)",
        "class_names": '["not 7", "7"]',
        "input_scaling": "(pixel / 255 - input_mean) / input_std",
        "input_mean": "0.1307",
        "input_std": "0.3081",
    }
    assert expected.items() <= metadata.items()


@pytest.mark.parametrize(
    ("checkpoint", "file"),
    [("run/model.pt", "run.onnx"), ("run/best.pt", "best.onnx"), ("bare/model.pt", "model.onnx")],
)
def test_the_file_is_named_after_the_run(
    tmp_path: Path, monkeypatch: MonkeyPatch, capsys: Capsys, checkpoint: str, file: str
) -> None:
    record: dict[str, Any] = {} if "bare" in checkpoint else {"class_names": list("0123456789")}
    save_network(tmp_path / checkpoint, **record)
    monkeypatch.chdir(tmp_path)
    assert main(["export", checkpoint, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["path"], result["num_bytes"]) == (file, (tmp_path / file).stat().st_size)
    assert f"checkpoint {checkpoint}" in err


def test_a_file_of_other_predictions_is_not_written(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    save_network(tmp_path / "net.pt")
    original = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, images: original(self, images).flip(1))
    target = tmp_path / "a.onnx"
    target.write_text("before")
    with pytest.raises(CheckpointError, match=r"not exported: predictions .* on \d+ of 1000"):
        export(load_model(tmp_path / "net.pt"), file=target)
    assert target.read_text() == "before"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("net.pt --file /dev/null/a.onnx", 1, "Not a directory"),
        ("nothing.pt", 1, "nothing.pt is neither a file nor a run"),
    ],
)
def test_what_cannot_be_exported_is_an_error(
    tmp_path: Path, monkeypatch: MonkeyPatch, refused: Refused, words: str, code: int, message: str
) -> None:
    save_network(tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    exit_code, error = refused("export", *words.split())
    assert exit_code == code
    assert message in error


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    monkeypatch: MonkeyPatch, refused: Refused, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"error: the package {package} is not installed: pip install 'mnist-ce[export]'"
    assert refused("export") == (2, message)

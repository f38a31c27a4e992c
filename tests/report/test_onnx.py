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

Refused = Callable[..., tuple[int, str]]
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("small_data", "_in_tmp_path")


@pytest.fixture
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_network(checkpoint: str, *, num_outputs: int = 10, **record: object) -> MLP:
    path = Path(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = MLP(num_outputs=num_outputs)
    save_tensors(path, dict(model.state_dict()))
    if record:
        content = {"format_version": 1, "dataset": "mnist", "name": "../../x", **record}
        (path.parent / "run.json").write_text(json.dumps(content))
    return model


def session(path: str) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_any_batch_gives_the_logits_of_torch() -> None:
    model = save_network("net.pt")
    result = export(load_model("net.pt"))
    assert result.num_checked == 1000
    assert result.max_difference < 1e-5
    for num_images in (1, 7, 300):
        images = torch.rand(num_images, 1, 28, 28)
        (logits,) = session(result.path).run(None, {"images": images.numpy()})
        np.testing.assert_allclose(logits, model(images).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("num_outputs", "record", "scale", "expected"),
    [
        (
            10,
            {"class_names": [*"012345678", "größer"], "prediction": {"temperature": 1.5}},
            {},
            {
                "class_names": json.dumps([*"012345678", "größer"], ensure_ascii=False),
                "input_scaling": "pixel / 255",
                "probabilities": "softmax(logits / temperature)",
                "temperature": "1.5",
            },
        ),
        (
            1,
            {"class_names": ["not 7", "7"]},
            {"input_mean": 0.1307, "input_std": 0.3081},
            {
                "class_names": '["not 7", "7"]',
                "probabilities": "sigmoid(logits)",
                "input_scaling": "(pixel / 255 - input_mean) / input_std",
                "input_mean": "0.1307",
                "input_std": "0.3081",
            },
        ),
    ],
)
def test_the_metadata_says_how_to_use_the_file(
    num_outputs: int, record: dict[str, Any], scale: dict[str, Any], expected: dict[str, str]
) -> None:
    save_network("run/model.pt", num_outputs=num_outputs, **record)
    trained = load_model("run/model.pt", **scale)
    path = export(trained).path
    (images,), (logits,) = session(path).get_inputs(), session(path).get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 1, 28, 28])
    assert (logits.name, logits.shape) == ("logits", ["batch", num_outputs])
    expected |= {"weights_sha256": trained.weights_sha256}
    assert expected.items() <= session(path).get_modelmeta().custom_metadata_map.items()
    assert Path(export(trained, file="again.onnx").path).read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize(
    ("checkpoint", "file"),
    [("run/model.pt", "run.onnx"), ("run/best.pt", "best.onnx"), ("bare/model.pt", "model.onnx")],
)
def test_the_file_is_named_after_the_run(
    capsys: pytest.CaptureFixture[str], checkpoint: str, file: str
) -> None:
    record: dict[str, Any] = {} if "bare" in checkpoint else {"class_names": list("0123456789")}
    save_network(checkpoint, **record)
    assert main(["export", checkpoint, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["path"], result["num_bytes"]) == (file, Path(file).stat().st_size)
    assert f"checkpoint {checkpoint}" in err


def test_a_file_of_other_predictions_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    save_network("net.pt")
    monkeypatch.setattr("mnist_ce.report.onnx.scale_pixels", lambda images: images / 100)
    Path("net.onnx").write_text("before")
    with pytest.raises(CheckpointError, match=r"not exported: predictions .* on \d+ of 1000"):
        export(load_model("net.pt"))
    assert Path("net.onnx").read_text() == "before"


@pytest.mark.parametrize(
    ("words", "missing", "code", "message"),
    [
        ("net.pt --file /dev/null/a.onnx", "", 1, "Not a directory"),
        ("nothing.pt", "", 1, "nothing.pt is neither a file nor a run"),
        ("net.pt", "onnx", 2, "package onnx is not installed: pip install 'mnist-ce[export]'"),
        ("net.pt", "onnxruntime", 2, "package onnxruntime is not installed: pip install"),
    ],
)
def test_what_cannot_be_exported_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    words: str,
    missing: str,
    code: int,
    message: str,
) -> None:
    save_network("net.pt")
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    exit_code, error = refused("export", *words.split())
    assert exit_code == code
    assert message in error

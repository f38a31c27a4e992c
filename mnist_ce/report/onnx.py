"""ONNX export of a trained network, compared with torch before the file is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnist_ce.evaluation.evaluate import load_splits_of
from mnist_ce.network.model import predict_logits, scale_pixels
from mnist_ce.network.objective import Binary
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import CheckpointError, UsageError, require
from mnist_ce.system.files import as_path, version, write_atomically

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 17, 8  # which every runtime of the last years supports
NUM_CHECKED = 1_000
# Of ONNX for an activation, where its name is not the same; they have torch's defaults.
OPERATORS = {"none": "Identity", "leaky": "LeakyRelu"}
# Two float32 implementations add up to 784 products in different orders: a relative error of some
# 1e-6 after five layers. A wrong graph is off by far more than this.
MAX_RELATIVE_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """An ONNX file that gives the predictions of the network."""

    path: str
    checkpoint: str
    num_checked: int  # test images on which ONNX Runtime and torch were compared
    max_difference: float  # the largest absolute difference of a logit
    num_bytes: int


def export(
    trained: TrainedModel,
    *,
    file: str | Path | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
) -> ExportResult:
    """Write a network as ONNX, if ONNX Runtime agrees with torch on 1,000 test images.

    Without `file` it gets the run's or checkpoint's name with `.onnx`, in the current directory;
    without `dataset` the test images are the run's own.

    A `UsageError` if a package is missing or the dataset does not fit the network; a
    `CheckpointError` if predictions or logits differ; a `DataError` without test images.
    """
    require("onnx", "onnxruntime", extra="export")
    if file is None:
        source = trained.path.resolve()
        is_run = source == RunDir(source.parent).model_path and trained.record
        file = f"{source.parent.name if is_run else source.stem}.onnx"
    path = as_path(file)
    content = onnx_model(trained).SerializeToString(deterministic=True)
    test = load_splits_of(trained, dataset=dataset, data_dir=data_dir, only_test=True).test
    images = test.images[:NUM_CHECKED]
    max_difference = _compare(trained, content, images)
    write_atomically(path, content)
    return ExportResult(str(path), str(trained.path), len(images), max_difference, len(content))


def onnx_model(trained: TrainedModel) -> onnx.ModelProto:
    """Build the ONNX graph of a network: a few nodes, so it needs no tracing.

    `images`, float32 [batch, 1, 28, 28], scaled as the metadata say → `logits`, float32 [batch,
    outputs], for any batch.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    activation = trained.mlp.activation
    if activation == "gelu":
        raise UsageError(f"ONNX {OPSET} has no operator for {activation}")
    state = trained.mlp.state_dict()  # `l1.weight`, `l1.bias`, …
    initializers = [numpy_helper.from_array(x.cpu().numpy(), name) for name, x in state.items()]
    nodes = [helper.make_node("Flatten", ["images"], ["a0"], axis=1)]  # → [batch, 784]
    for number in range(1, len(trained.mlp.layers) + 1):
        inputs, result = [f"a{number - 1}", f"l{number}.weight", f"l{number}.bias"], f"h{number}"
        # a · weightᵀ + bias → [batch, width of the layer]
        nodes.append(helper.make_node("Gemm", inputs, [result], transB=1))
        operator = OPERATORS.get(activation, activation.capitalize())
        nodes.append(helper.make_node(operator, [result], [f"a{number}"]))
    del nodes[-1]  # the last layer's outputs are the logits
    nodes[-1].output[:] = ["logits"]
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("images", (1, 28, 28)), ("logits", trained.mlp.sizes[-1:]))
    )
    graph = helper.make_graph(nodes, "mlp", [images], [logits], initializers)
    producer: dict[str, Any] = {"producer_name": "mnist-ce", "producer_version": version()}
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, **producer)
    helper.set_model_props(model, _metadata(trained))
    onnx.checker.check_model(model, full_check=True)
    return model


def _metadata(trained: TrainedModel) -> dict[str, str]:
    is_plain = (trained.input_mean, trained.input_std) == (0.0, 1.0)
    function = "sigmoid" if isinstance(trained.objective, Binary) else "softmax"
    logits = "logits" if trained.temperature == 1.0 else "logits / temperature"
    return {
        "class_names": json.dumps(trained.class_names, ensure_ascii=False),
        "input_scaling": "pixel / 255" if is_plain else "(pixel / 255 - input_mean) / input_std",
        "input_mean": str(trained.input_mean),
        "input_std": str(trained.input_std),
        "input_polarity": "ink bright on black",
        "probabilities": f"{function}({logits})",
        "temperature": str(trained.temperature),
        "dataset": trained.dataset or "unknown",
        "weights_sha256": trained.weights_sha256,
    }


def _compare(trained: TrainedModel, content: bytes, images: Tensor) -> float:
    """Return the largest difference of a logit; a CheckpointError where predictions differ."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    mean, std = trained.input_mean, trained.input_std
    inputs = ((scale_pixels(images) - mean) / std).reshape(-1, 1, 28, 28)
    actual = torch.from_numpy(session.run(["logits"], {"images": inputs.numpy()})[0])
    expected = predict_logits(trained.model, images, mean=mean, std=std)  # [n, outputs]
    difference = float((actual - expected).abs().max())
    bound = MAX_RELATIVE_DIFFERENCE * max(1.0, float(expected.abs().max()))
    predictions = trained.objective.predictions
    num_different = int((predictions(actual) != predictions(expected)).sum())
    if not difference <= bound or num_different:  # `not <=`, since a NaN is an error too
        raise CheckpointError(
            f"{trained.path} was not exported: predictions of ONNX Runtime differ on "
            f"{num_different} of {len(images)} test images, logits by up to {difference:.2g} "
            f"(allowed: {bound:.2g})"
        )
    return difference

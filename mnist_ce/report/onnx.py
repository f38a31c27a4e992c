"""A trained network as an ONNX file, checked against torch before it is written.

The graph is a handful of `Gemm` and `Relu` nodes, so it is built here node by node with
`onnx.helper`: that needs no tracing, gives the same bytes each time and a graph one can read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnist_ce.data.loader import scale_pixels
from mnist_ce.evaluation.evaluate import load_splits_of
from mnist_ce.network.objective import Binary
from mnist_ce.runs.load_model import TrainedModel, check_input_scale, load_model
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import CheckpointError, RunError, UsageError
from mnist_ce.system.files import one_line, version, write_atomically

if TYPE_CHECKING:
    import onnx

__all__ = ["ExportResult", "export", "onnx_model"]

# Old enough for every runtime of the last years, and all that these nodes need.
OPSET = 17
IR_VERSION = 8

NUM_CHECKED = 1_000
# Two float32 implementations add up to 784 products in different orders: a relative error of some
# 1e-6 after five layers. A wrong graph is off by far more than this.
MAX_RELATIVE_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """An ONNX file that answers as the network does.

    Args:
        path: The file.
        checkpoint: The weights it was made from.
        num_checked: Test images that both were asked about.
        max_difference: The largest absolute difference of a logit.
        num_bytes: The size of the file.
    """

    path: Path
    checkpoint: Path
    num_checked: int
    max_difference: float
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {
            "path": str(self.path),
            "checkpoint": str(self.checkpoint),
            "num_checked": self.num_checked,
            "max_difference": self.max_difference,
            "num_bytes": self.num_bytes,
        }


def export(
    checkpoint: str | Path | None = None,
    *,
    file: str | Path | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    output: str | Path = "checkpoints",
    input_mean: float = 0.0,
    input_std: float = 1.0,
) -> ExportResult:
    """Write a network as ONNX, once ONNX Runtime answers 1,000 test images as torch does.

    Args:
        checkpoint: See `load_model`.
        file: Where to write; None: the run's or checkpoint's name with `.onnx`, in this folder.
        dataset: Whose test images to check with; None: the run's own dataset.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or the run's own.
        output: The folder that holds the runs.
        input_mean: For networks trained on normalised pixels: (pixel/255 - mean) / std.
        input_std: See `input_mean`.

    Raises:
        UsageError: If the packages of the extra `export` are missing, the dataset does not fit
            the network, or the input's scale makes no sense.
        CheckpointError: If the network cannot be loaded, or the ONNX file would answer otherwise.
        DataError: If the test images cannot be had.
        RunError: If the file cannot be written.
    """
    _require_packages()
    check_input_scale(input_mean, input_std)
    trained = load_model(checkpoint, output)
    path = Path(file) if file is not None else Path(f"{_name(trained)}.onnx")
    content = onnx_model(trained, input_mean, input_std).SerializeToString(deterministic=True)
    task = load_splits_of(trained, dataset=dataset, data_dir=data_dir)
    images = task.test.images[:NUM_CHECKED]
    max_difference = _check(trained, content, images, input_mean, input_std)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {one_line(error)}") from None
    return ExportResult(path, trained.path, len(images), max_difference, len(content))


def onnx_model(
    trained: TrainedModel, input_mean: float = 0.0, input_std: float = 1.0
) -> onnx.ModelProto:
    """Build the ONNX graph of a network.

    Its input `images` is float32 [batch, 1, 28, 28], pixels scaled as the metadata's
    `input_scaling` says, ink bright on black; its output `logits` is float32 [batch, outputs]. The
    batch may have any size.

    Args:
        trained: The network.
        input_mean: Told in the metadata, see `export`.
        input_std: See `input_mean`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["images"], ["pixels"], axis=1)]  # → [batch, 784]
    weights = []
    value = "pixels"
    layers = trained.model.layers
    for number, layer in enumerate(layers, start=1):
        for part, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            array = tensor.detach().cpu().numpy()
            weights.append(numpy_helper.from_array(array, f"l{number}.{part}"))
        is_last = number == len(layers)
        result = "logits" if is_last else f"h{number}"
        inputs = [value, f"l{number}.weight", f"l{number}.bias"]
        # value · weightᵀ + bias → [batch, width of the layer]
        nodes.append(helper.make_node("Gemm", inputs, [result], transB=1))
        if not is_last:
            value = f"a{number}"
            nodes.append(helper.make_node("Relu", [result], [value]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, ["batch", trained.model.sizes[-1]]
            )
        ],
        initializer=weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mnist-ce",
        producer_version=version(),
    )
    helper.set_model_props(model, _metadata(trained, input_mean, input_std))
    onnx.checker.check_model(model, full_check=True)
    return model


def _metadata(trained: TrainedModel, input_mean: float, input_std: float) -> dict[str, str]:
    """Return what one must know to use the file, as ONNX metadata: texts by name."""
    is_plain = (input_mean, input_std) == (0.0, 1.0)
    is_binary = isinstance(trained.objective, Binary)
    logits = "logits" if trained.temperature == 1.0 else "logits / temperature"
    return {
        "class_names": json.dumps(trained.class_names, ensure_ascii=False),
        "input_scaling": "pixel / 255" if is_plain else "(pixel / 255 - input_mean) / input_std",
        "input_mean": str(input_mean),
        "input_std": str(input_std),
        "input_polarity": "ink bright on black",
        "probabilities": f"{'sigmoid' if is_binary else 'softmax'}({logits})",
        "temperature": str(trained.temperature),
        "dataset": trained.dataset or "unknown",
        "weights_sha256": trained.weights_sha256,
    }


def _check(trained: TrainedModel, content: bytes, images: Tensor, mean: float, std: float) -> float:
    """Return the largest difference between ONNX Runtime's logits and torch's.

    Raises:
        CheckpointError: If it is too large, or one image is answered differently.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs = (scale_pixels(images) - mean) / std  # [n, 784]
    answer = session.run(["logits"], {"images": inputs.reshape(-1, 1, 28, 28).numpy()})[0]
    theirs = torch.from_numpy(answer)
    with torch.inference_mode():
        ours = trained.model(inputs)  # [n, outputs]
    difference = float((theirs - ours).abs().max())
    bound = MAX_RELATIVE_DIFFERENCE * max(1.0, float(ours.abs().max()))
    predictions = trained.objective.predictions
    num_different = int((predictions(theirs) != predictions(ours)).sum())
    if not difference <= bound or num_different:
        raise CheckpointError(
            f"{trained.path} was not exported: ONNX Runtime answers {num_different} of "
            f"{len(images)} test images differently, logits differ by up to {difference:.2g} "
            f"(allowed: {bound:.2g})"
        )
    return difference


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"export needs the package {error.name}: pip install 'mnist-ce[export]'"
        ) from None


def _name(trained: TrainedModel) -> str:
    """Return the name of the run's folder, or of the file where it is not a run's final weights."""
    path = trained.path.resolve()
    is_run = path == RunDir(path.parent).model_path and trained.record
    return path.parent.name if is_run else path.stem

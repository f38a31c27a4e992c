"""`explain`: its output, its errors, and its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data.synthetic import generate
from mnist_ce.explain.image import explain_image
from mnist_ce.explain.loss import explain_loss, to_json
from mnist_ce.network.model import MLP
from mnist_ce.runs.load_model import load_model
from mnist_ce.system.errors import UsageError

Capsys = pytest.CaptureFixture[str]
Networks = dict[int, Path]  # by number of outputs


def run(capsys: Capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["explain", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def run_json(capsys: Capsys, *arguments: str) -> dict[str, Any]:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return dict(json.loads(out))


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = generate(10, seed=1)
    path = tmp_path_factory.mktemp("images") / "seven.png"
    Image.fromarray(drawn.images[drawn.labels == 7][0].numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(5)
    paths = {num_outputs: folder / f"outputs-{num_outputs}.pt" for num_outputs in (10, 1)}
    for num_outputs, path in paths.items():
        torch.save(MLP((20,), num_outputs).state_dict(), path)
    return paths


def test_logits_are_explained_four_ways(capsys: Capsys) -> None:
    arguments = ("--logits", "2.0,1.0,0.1", "--target", "0")
    code, short, _ = run(capsys, *arguments)
    assert code == 0
    question, loss, guessing = short.splitlines()[:3]
    assert question == "which of 3 classes? target 0, prediction 0 (65.9 %), right"
    assert loss == "loss 0.4170: the target has a probability of 65.9 %"
    assert guessing.endswith("ln 3 = 1.0986")
    assert "CrossEntropyLoss takes raw logits" not in short
    code, out, _ = run(capsys, *arguments, "--precise", "--why-raw-logits")
    assert code == 0
    for number in ("0.65900114", "0.24243297", "0.09856589", "7.38905610", "2.31703002"):
        assert number in out
        assert number not in short
    assert "CrossEntropyLoss takes raw logits" in out
    lines = out.splitlines()
    assert sum(line.endswith(("NumPy  0.41703002", "torch  0.41703002")) for line in lines) == 4
    assert [line[:2] for line in lines if line.endswith("<- target")] == ["0 "]
    assert "0.80212089" in out  # softmax applied twice
    assert max(map(len, lines)) <= 80
    assert out.isascii()


@pytest.mark.parametrize(
    ("reduction", "loss"),
    [("mean", 0.30182446), ("sum", 0.90547337), ("none", [0.38404150, 0.41703002, 0.10440185])],
)
def test_rows_are_reduced(capsys: Capsys, reduction: str, loss: object) -> None:
    rows = ("--logits", "0.1,1,2.1; 2,1,0.1; 0.1,3,0.1", "--target", "2,0,1")
    document = run_json(capsys, *rows, "--reduction", reduction)
    assert document["agree"]
    by_torch = {"log_softmax_nll_loss", "cross_entropy_loss"}
    assert set(document["losses"]) == {"negative_log_softmax", "log_sum_exp", *by_torch}
    for value in (document["loss"], *document["losses"].values()):
        assert value == pytest.approx(loss, abs=1e-8)
    assert [row["prediction"] for row in document["rows"]] == [2, 0, 1]
    _, out, _ = run(capsys, *rows, "--reduction", reduction)
    assert max(map(len, out.splitlines())) <= 80


def test_probabilities_are_explained(capsys: Capsys) -> None:
    document = run_json(capsys, "--probabilities", "0.7,0.2,0.1", "--target", "0")
    assert document["loss"] == pytest.approx(0.35667494, abs=1e-8)
    assert document["agree"]
    assert document["rows"][0]["gradient"] is None
    # CrossEntropyLoss takes logits: given probabilities, it applies softmax to them
    twice = torch.nn.CrossEntropyLoss()(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0]))
    assert document["loss_applied_twice"] == pytest.approx(twice.item())
    rounded = explain_loss("probabilities", [[0.3333, 0.3333, 0.3333]], [1])
    assert rounded["agree"]
    assert "only up to rounding" in rounded["notes"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--logits", "2,1,0.1", "--target", "0"),
        ("--logits", "0,-inf,900", "--target", "1"),
        ("--probabilities", ",".join(["0.1"] * 10), "--target", "3"),
        ("--binary", "--logits", "1.2", "--target", "1"),
    ],
)
def test_numbers_are_plotted(capsys: Capsys, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, _, err = run(capsys, *arguments, "--plot", str(tmp_path / "loss.png"))
    assert (code, err) == (0, f"drawn in {tmp_path / 'loss.png'}\n")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.width > image.height > 300


def test_the_gradient_is_that_of_torch(capsys: Capsys) -> None:
    rows = ("--logits", "2,1,0.1; 0,3,1", "--target", "0,2", "--reduction", "sum")
    document = run_json(capsys, *rows)
    logits = torch.tensor([[2.0, 1.0, 0.1], [0.0, 3.0, 1.0]], requires_grad=True)
    torch.nn.CrossEntropyLoss(reduction="sum")(logits, torch.tensor([0, 2])).backward()
    gradient = torch.tensor([row["gradient"] for row in document["rows"]])
    torch.testing.assert_close(gradient, logits.grad)


def test_binary_logits_are_explained(capsys: Capsys) -> None:
    document = run_json(capsys, "--binary", "--logits", "1.2", "--target", "1")
    assert document["agree"]
    for method in ("sigmoid_bce_loss", "bce_with_logits_loss"):
        assert document["losses"][method] == pytest.approx(0.26328247, abs=1e-8)
    code, out, _ = run(capsys, "--binary", "--logits", "40; -1", "--target", "0,0")
    assert code == 0
    assert "DIFFER" in out
    assert "BCELoss clamps the loss at 100" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_non_finite_numbers_are_strings_in_json(capsys: Capsys) -> None:
    document = run_json(capsys, "--logits", "0,-inf,1e4", "--target", "1")
    assert document["loss"] == "Infinity"
    assert document["rows"][0]["logits"] == [0.0, "-Infinity", 1e4]
    assert document["rows"][0]["exp_logits"] == [1.0, 0.0, "Infinity"]
    assert to_json(explain_loss("probabilities", [[1.0, 0.0]], [1]))["loss"] == "Infinity"


def test_double_softmax_reaches_its_lower_bound_and_no_less() -> None:
    sure = explain_loss("logits", [[1000.0] + [0.0] * 9], [0])
    assert sure["losses"]["cross_entropy_loss"] == pytest.approx(0)
    assert sure["least_loss_applied_twice"] == pytest.approx(math.log(1 + 9 / math.e))
    two = explain_loss("logits", [[1000.0, 0.0], [0.0, 1000.0]], [0, 1], reduction="sum")
    for loss in (sure, two, explain_loss("binary", [[1000.0]], [1])):
        assert loss["loss_applied_twice"] == pytest.approx(loss["least_loss_applied_twice"])


WRONG_USAGE = [
    (["--logits", "2,1", "--target", "2"], "target 2 is not a class: the classes are 0 to 1"),
    (["--logits", "2,1", "--target", "-1"], "target -1 is not a class: the classes are 0 to 1"),
    (["--logits", "2", "--target", "1"], "target 1 is not a class: the classes are 0 alone"),
    (["--logits", "2,1", "--target", "0,1"], "1 row needs as many targets, not 2"),
    (["--logits", "2,1", "--target", "one"], "--target 'one': give one class number per row"),
    (["--logits", "2,1"], "--target is missing"),
    (["--logits", "2,nan", "--target", "0"], "the logits contain nan"),
    (["--logits", "2,inf", "--target", "0"], "the logits contain inf: inf / inf is undefined"),
    (["--logits", "-inf,-inf", "--target", "0"], "contain nothing above -inf"),
    (["--logits", "1e39,0", "--target", "0"], "float32's largest"),
    (["--logits", "2,x", "--target", "0"], "--logits: 'x' is not a number"),
    (["--logits", "", "--target", "0"], "--logits: '' is not a number"),
    (["--logits", "1,2;3", "--target", "0,0"], "the rows of logits differ in length: 1 to 2"),
    (["--logits", "1,2;nan,3", "--target", "0,0"], "the logits of row 1 contain nan"),
    (["--logits", "1,2", "--target", "0", "--reduction", "avg"], "is not one of mean, sum, none"),
    (["--probabilities", "2,1,0.1", "--target", "0"], "contain 2, not in [0, 1]; for logits use"),
    (["--probabilities", "0.7,-0.2,0.5", "--target", "0"], "contain -0.2, not in [0, 1]"),
    (["--probabilities", "0.7,0.2", "--target", "0"], "sum to 0.9, not 1; for logits use --logits"),
    (["--probabilities", "nan,1", "--target", "0"], "contain nan, not in [0, 1]"),
    (["--binary", "--logits", "1.2,3", "--target", "1"], "--binary takes one logit per row"),
    (["--binary", "--logits", "1.2", "--target", "2"], "target 2 is not a class"),
    (["--binary", "--logits", "nan", "--target", "1"], "the logits contain nan"),
    (["--binary", "--probabilities", "1", "--target", "0"], "--binary goes with --logits"),
    (["--target", "0"], "give one of --logits, --probabilities and IMAGE"),
    (["x.png", "--logits", "1", "--target", "0"], "give one of --logits, --probabilities and"),
    (["x.png", "--binary"], "for an image the checkpoint determines it"),
    (["x.png", "--reduction", "sum"], "--reduction goes with numbers"),
    (["x.png", "--plot", "why.jpg"], "--plot why.jpg: the plot is a PNG"),
    (["--logits", "1,2;2,1", "--target", "0,0", "--plot", "a.png"], "--plot goes with one row"),
    (["--logits", "1,2", "--target", "0", "--plot", "a.svg"], "--plot a.svg: the plot is a PNG"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USAGE)
def test_wrong_usage_is_one_line(capsys: Capsys, arguments: list[str], message: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_an_image_is_explained(
    capsys: Capsys, image_path: Path, networks: Networks, tmp_path: Path
) -> None:
    plot = tmp_path / "why.png"
    arguments = (str(image_path), "--target", "7", "--checkpoint", str(networks[10]))
    code, out, err = run(capsys, *arguments, "--plot", str(plot))
    assert code == 0
    lines = out.splitlines()
    assert lines[14].startswith("which of 10 classes? target 7, prediction ")
    assert all(len(line) == 28 for line in lines[:14])
    assert out.isascii()
    with Image.open(image_path) as image:
        dark = np.asarray(image)[10:12, :].max(axis=0) < 25
    assert [character == " " for character in lines[5]] == dark.tolist()
    assert max(map(len, lines)) <= 80
    assert str(networks[10]) in err
    with Image.open(plot) as image:
        assert image.width > image.height > 300

    document = run_json(capsys, *arguments)
    with Image.open(image_path) as image:
        assert document["pixels"] == np.asarray(image).tolist()
    inputs = torch.tensor(document["pixels"], dtype=torch.float32)[None] / 255
    logits = load_model(networks[10]).model(inputs)
    expected = torch.nn.CrossEntropyLoss()(logits, torch.tensor([7])).item()
    assert document["training_loss"] == pytest.approx(expected, rel=1e-6)
    assert document["loss"] == pytest.approx(expected, rel=1e-5)
    assert document["agree"]
    assert document["label"] == int(logits.argmax())
    assert set(document["gradient_times_input"]) == {"7", document["class_name"]}


@pytest.mark.parametrize("num_outputs", [10, 1])
def test_attribution_is_the_gradient_of_the_log_odds_times_the_ink(
    image_path: Path, networks: Networks, num_outputs: int
) -> None:
    trained = load_model(networks[num_outputs], input_mean=0.1, input_std=0.3)
    with Image.open(image_path) as image:
        pixels = np.asarray(image)
    label = 1 if num_outputs == 1 else 3

    def log_odds(ink: torch.Tensor) -> float:
        logits = trained.model((ink[None] - 0.1) / 0.3)
        return trained.objective.probabilities(logits)[0, label].logit().item()

    target = "yes" if num_outputs == 1 else "3"
    result = explain_image(image_path, target, checkpoint=trained).attributions[label]
    trained.model.double()  # for differences of nearby values
    assert not result[pixels == 0].any()
    ink = torch.tensor(pixels / 255)
    for row, column in np.argwhere(pixels > 0)[::20]:
        step = torch.zeros_like(ink)
        step[row, column] = 1e-5
        slope = (log_odds(ink + step) - log_odds(ink - step)) / 2e-5
        expected = slope * pixels[row, column] / 255
        assert result[row, column] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_yes_no_network_is_explained(
    capsys: Capsys, image_path: Path, networks: Networks
) -> None:
    arguments = (str(image_path), "--checkpoint", str(networks[1]), "--target")
    yes, no = (run_json(capsys, *arguments, target) for target in ("yes", "no"))
    assert yes["kind"] == "binary"
    assert yes["class_names"] == ["no", "yes"]
    probability = 1 / (1 + math.exp(-yes["rows"][0]["logits"][0]))
    assert yes["loss"] == pytest.approx(-math.log(probability))
    assert no["loss"] == pytest.approx(-math.log(1 - probability))


def test_a_target_is_a_class_name_or_an_unambiguous_index(
    networks: Networks, image_path: Path
) -> None:
    unasked = explain_image(image_path, checkpoint=networks[10])
    assert unasked.target == unasked.prediction
    assert "--target" in unasked.loss["notes"][0]
    trained = load_model(networks[10])
    clothes = replace(trained, class_names=tuple("abcdefghiJ"))
    assert explain_image(image_path, "j", checkpoint=clothes).target == 9
    assert explain_image(image_path, "9", checkpoint=clothes).target == 9
    odd = replace(trained, class_names=tuple("1357902468"))
    assert explain_image(image_path, "9", checkpoint=odd).target == 4
    for target in ("10", "-1", "seven", ""):
        with pytest.raises(UsageError, match=f"target '{target}' is not one of 0, 1, 2, 3, 4"):
            explain_image(image_path, target, checkpoint=networks[10])


def test_what_cannot_be_read_or_written(
    refused: Callable[..., tuple[int, str]], image_path: Path, networks: Networks, tmp_path: Path
) -> None:
    blank, plot = tmp_path / "blank.png", tmp_path / "none" / "why.png"
    Image.new("L", (100, 100), 255).save(blank)
    for arguments, message in (
        ((tmp_path / "missing.png",), f"{tmp_path / 'missing.png'} does not exist"),
        ((blank,), f"{blank} cannot be explained: no ink found"),
        ((image_path, "--plot", plot), f"{plot}: No such file or directory"),
    ):
        code, error = refused("explain", *map(str, arguments), "--checkpoint", str(networks[10]))
        assert code == 1
        assert error.startswith(f"error: {message}")

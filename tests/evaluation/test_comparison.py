from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import nn

from mnist_ce.cli import main
from mnist_ce.evaluation.comparison import Comparison, compare, compare_groups, holm, p_text
from mnist_ce.evaluation.evaluate import EvaluationReport, SplitResult
from mnist_ce.network.objective import Multiclass
from mnist_ce.runs.load_model import TrainedModel

pytestmark = pytest.mark.usefixtures("small_data")


@pytest.fixture(scope="module")
def runs(train_small_in: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of different quality and for different classes."""
    folder = tmp_path_factory.mktemp("runs")
    variants: dict[str, dict[str, object]] = {
        "good": {"train__epochs": 4},
        "poor": {},
        "other": {"data__dataset": "kmnist"},
        "three": {"data__classes": [1, 2, 3]},
        "four": {"data__classes": [4, 5, 6]},
        "seed-0": {"data__validation_size": 100},
        "seed-1": {"data__validation_size": 100, "train__seed": 1},
    }
    for name, changes in variants.items():
        train_small_in(folder, name, **{"train__epochs": 1, **changes})
    return folder


def test_every_difference_is_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "good", "poor", "--output", str(runs), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    a, b = (report.result for report in compare("good", "poor", output=runs).reports)
    columns = torch.stack([torch.arange(1_000), a.labels, a.predictions, b.predictions], dim=1)
    expected = columns[a.predictions != b.predictions].tolist()
    keys = ("index", "label", "a", "b")
    assert [[item[key] for key in keys] for item in document["differences"]] == expected
    counts = ("both_right", "only_a_right", "only_b_right", "both_wrong")
    both, only_a, only_b, neither = (document[key] for key in counts)
    assert both + only_a + only_b + neither == document["total"] == 1_000
    assert both + only_a == document["a"]["correct"] == a.num_correct
    assert both + only_b == document["b"]["correct"] == b.num_correct
    assert document["more_than_chance"] is (document["mcnemar_p_value"] < 0.05) is True
    assert "holm_p_value" not in document
    assert document["verdict"].startswith("A is correct on ")
    assert "images; significant (McNemar p = " in document["verdict"]
    (pair,) = compare("poor", "good", output=runs).pairs
    assert pair.verdict == document["verdict"].replace("A is", "B is")


def test_a_model_equals_itself_and_one_image_is_not_significant(runs: Path, tmp_path: Path) -> None:
    shutil.copy(runs / "good" / "model.pt", tmp_path / "bare.pt")
    comparison = compare("good", tmp_path / "bare.pt", output=runs)
    assert comparison.differing == []
    assert comparison.pairs[0].verdict.startswith("Neither is better")
    comparison = compare("good", "good", output=runs)
    result = comparison.reports[1].result
    right = (result.predictions == result.labels).nonzero()[0]
    result.predictions[right] = (result.labels[right] + 1) % 10
    assert comparison.pairs[0].verdict == (
        "A is correct on 1 more of 1,000 images; not significant (McNemar p = 1.00)."
    )


@pytest.mark.parametrize("others", [["poor"], ["poor", "seed-0"]])
def test_the_list_can_be_cut(
    runs: Path, capsys: pytest.CaptureFixture[str], others: list[str]
) -> None:
    arguments = ["compare", "good", *others, "--output", str(runs), "--limit"]
    num = len(compare("good", *others, output=runs).differing)
    assert main([*arguments, "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    title = lines.index(f"images with different predictions ({num})")
    assert lines[title + 1].split() == ["index", "truth", *"ABC"[: 1 + len(others)]]
    assert lines[title + 4] == lines[-1] == f"and {num - 2:,} more: --limit {num}, or --json"
    assert any("significant" in line for line in lines[:title])
    assert main([*arguments, "0"]) == 0
    assert "different predictions" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("good three", "not the same images"),
        ("good other", "name the one to compare them on with --dataset"),
        ("three four", "not the same images"),
        ("seed-0 seed-1 --split validation", "the validation splits of"),
        ("good poor --split validation", "there is no validation split"),
        ("good poor --split all", "split 'all' is not one of"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    runs: Path, refused: Callable[..., tuple[int, str]], arguments: str, message: str
) -> None:
    code, error = refused("compare", *arguments.split(), "--output", str(runs))
    assert code == 2
    assert message in error


def test_several_are_compared_in_pairs_and_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, plot = ["good", "poor", "seed-0"], tmp_path / "plot.png"
    command = ["compare", *names, "--output", str(runs), "--plot", str(plot), "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    pairs = {(pair["a"], pair["b"]): pair for pair in document["pairs"]}
    assert list(pairs) == [(0, 1), (0, 2), (1, 2)]
    for (a, b), pair in pairs.items():
        (two,) = compare(names[a], names[b], output=runs).pairs
        assert pair["only_a_right"] == two.only_a_right
        assert pair["mcnemar_p_value"] == two.holm_p_value <= pair["holm_p_value"]
    predictions = [item["predictions"] for item in document["differences"]]
    assert all(len(set(of_image)) > 1 for of_image in predictions)
    assert len(predictions) >= len(compare("good", "poor", output=runs).differing)
    with Image.open(plot) as image:
        assert image.width > 1_000
    on_one_dataset = compare("good", "other", dataset="mnist", output=runs)
    assert {report.dataset for report in on_one_dataset.reports} == {"mnist"}


@given(
    seed=st.integers(0, 2**32),
    num_images=st.sampled_from([1, 2, 30]),
    num_models=st.integers(2, 4),
    num_right=st.sampled_from([0, 1, 3]),
)
@settings(deadline=None, max_examples=40)
def test_every_figure_of_a_comparison_equals_an_independent_computation(
    seed: int, num_images: int, num_models: int, num_right: int
) -> None:
    """Models that are always wrong, always right or equal; one image; ties of p-values."""
    generator = np.random.default_rng(seed)
    right = generator.random((num_models, num_images)) < num_right / 3
    names, labels = ("a", "b", "c"), torch.zeros(num_images, dtype=torch.int64)
    images = torch.zeros(num_images, 28, 28, dtype=torch.uint8)
    trained = TrainedModel(nn.Identity(), Path("a.pt"), names, Multiclass(), None, "0" * 64)
    predictions = np.where(right, 0, generator.integers(1, 3, right.shape))
    reports = [
        EvaluationReport(
            trained, "mnist", "test", names, SplitResult(logits, labels, Multiclass()), images
        )
        for logits in torch.nn.functional.one_hot(torch.from_numpy(predictions), 3).float()
    ]
    document = Comparison(reports).to_dict()
    json.dumps(document, allow_nan=False)
    pairs = document.get("pairs") or [{**document, "a": 0, "b": 1}]
    counts = [
        ((right[p["a"]] & ~right[p["b"]]).sum(), (right[p["b"]] & ~right[p["a"]]).sum())
        for p in pairs
    ]
    assert [(pair["only_a_right"], pair["only_b_right"]) for pair in pairs] == counts
    assert [pair["both_right"] for pair in pairs] == [
        (right[p["a"]] & right[p["b"]]).sum() for p in pairs
    ]
    tails = [2 * stats.binom.cdf(min(pair), sum(pair), 0.5) for pair in counts]
    p_values = [min(1.0, tail) for tail in tails]
    assert [pair["mcnemar_p_value"] for pair in pairs] == pytest.approx(p_values)
    if len(pairs) > 1:
        # Of Holm's method: the highest of what all smaller p-values are multiplied by.
        expected = [
            max(min(1.0, p * sum(q >= p for q in p_values)) for p in p_values if p <= of_pair)
            for of_pair in p_values
        ]
        assert [pair["holm_p_value"] for pair in pairs] == pytest.approx(expected)
    differing = np.flatnonzero((predictions != predictions[0]).any(axis=0)).tolist()
    assert [item["index"] for item in document["differences"]] == differing


def test_p_values_are_adjusted_and_written() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
    assert p_text(0.0) == p_text(1e-310) == "p < 1e-300"
    assert p_text(0.25) == "p = 0.250"


def test_groups_without_one_kind_of_variance_are_compared_by_scipys_t_tests() -> None:
    images = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0, 0]]) == 1
    a, b = images[:1].expand(3, -1), images[1:].expand(2, -1)  # seeds that make no difference
    paired = stats.ttest_1samp((a[0].double() - b[0].double()).numpy(), 0)
    seeds = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1]]) == 1
    c, d = seeds, seeds & torch.tensor([[False], [True], [True]])  # images that make none
    welch = stats.ttest_ind(*(x.double().mean(dim=1).numpy() for x in (c, d)), equal_var=False)
    for found, expected in ((compare_groups(a, b), paired), (compare_groups(c, d), welch)):
        assert found.p_value == pytest.approx(expected.pvalue)
        interval = np.clip([*expected.confidence_interval(0.95)], -1, 1)
        assert found.interval == pytest.approx(interval)


def group(generator: torch.Generator, rates: torch.Tensor, num_seeds: int) -> torch.Tensor:
    """Draw which images networks get right: by image, by seed, and by chance."""
    shift = 0.02 * torch.randn(num_seeds, 1, generator=generator)
    return torch.rand(num_seeds, len(rates), generator=generator) < rates + shift


def test_groups_are_compared_over_images_and_seeds() -> None:
    generator = torch.Generator().manual_seed(0)
    num_rejected = num_found = num_covered = 0
    for _ in range(200):
        rates = 0.7 + 0.2 * torch.rand(500, generator=generator)
        a, equal, better = (group(generator, rates + gain, 3) for gain in (0, 0, 0.08))
        num_rejected += compare_groups(a, equal).p_value < 0.05
        found = compare_groups(better, a)
        num_found += found.p_value < 0.05
        num_covered += found.interval[0] <= 0.08 <= found.interval[1]
    assert num_rejected <= 20  # images alone, without the seeds, would reject about half
    assert num_found >= 80
    assert num_covered >= 180
    same = torch.ones(2, 10, dtype=torch.bool)
    assert compare_groups(same, same).p_value == 1
    assert compare_groups(same, ~same).p_value == 0
    one = compare_groups(same[:, :1], ~same[:, :1])  # one image
    assert (one.difference, one.interval, one.p_value) == (1, (-1, 1), 1)
    few = compare_groups(torch.tensor([[True, False], [True, True]]), torch.zeros(2, 2).bool())
    assert -1 <= few.interval[0] <= few.interval[1] <= 1

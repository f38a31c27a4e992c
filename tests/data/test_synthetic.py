from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ce.data import synthetic
from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic import generate, load_styles, load_synthetic


@pytest.fixture
def lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_lines: Callable[[], list[str]]
) -> Callable[[], list[str]]:
    """Small splits in no time, a cache of the test's own, what was logged since the last call."""

    def draw(num_images: int, seed: int) -> Split:
        images = torch.randint(256, (20, 28, 28), generator=torch.Generator().manual_seed(seed))
        return Split(images[: num_images // 3_000].byte(), torch.arange(num_images // 3_000) % 10)

    monkeypatch.setattr(synthetic, "generate", draw)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[str] = []

    def new_lines() -> list[str]:
        new = log_lines()[len(seen) :]
        seen.extend(new)
        return new

    return new_lines


def same(one: Split, other: Split) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_shapes_dtypes_and_an_even_share_of_each_digit() -> None:
    digits = generate(507, seed=5)
    assert digits.images.shape == (507, 28, 28)
    assert (digits.images.dtype, digits.labels.dtype) == (torch.uint8, torch.int64)
    assert digits.labels.bincount(minlength=10).tolist() == [51] * 7 + [50] * 3
    assert digits.labels.tolist() != sorted(digits.labels.tolist())
    assert len({image.numpy().tobytes() for image in digits.images}) == 507  # no two are alike
    assert len(generate(0, seed=5)) == 0


def test_digits_look_like_those_of_mnist() -> None:
    images = generate(1000, seed=3).images
    ink = images > 0
    sides = torch.maximum(ink.any(dim=1).sum(dim=1), ink.any(dim=2).sum(dim=1))
    assert int(sides.max()) <= 20  # the longer side
    assert float((sides >= 19).float().mean()) > 0.97
    weights = images.double() / images.double().sum(dim=(1, 2), keepdim=True)
    for dim in (1, 2):
        centres = weights.sum(dim=3 - dim) @ torch.arange(28.0, dtype=torch.float64)
        within = (centres > 13.499) & (centres < 14.501)
        assert float(within.float().mean()) > 0.99  # the rest would leave the field
        assert float((centres - 14).abs().max()) < 1.5
    # As much ink as in handwriting, bright and antialiased.
    assert 0.08 < float(images.float().mean()) / 255 < 0.18
    assert int(images.flatten(1).amax(dim=1).median()) == 255
    assert 0.2 < float((ink & (images < 255)).sum() / ink.sum()) < 0.8


def test_the_styles_of_many_countries_have_each_digit_in_several_ways() -> None:
    styles = load_styles("world")
    assert all(sum(style.digit == digit for style in styles) >= 4 for digit in range(10))
    for style in styles:  # the stroke left of the corner falls in a 1, and not in a 7
        end, corner = style.pieces[0][0], style.pieces[0][-1]
        is_stroke = len(style.pieces) >= len(style.pieces[0]) == 2 and corner[0] - end[2] > 0.05
        if style.digit in (1, 7) and is_stroke:  # no hook, no stem
            depths = end[1] - corner[1], end[3] - corner[3]
            assert (min(depths) >= 0.12) if style.digit == 1 else (max(depths) <= 0.12)
    digits = generate(400, seed=5, styles="world")
    assert digits.labels.bincount().tolist() == [40] * 10
    assert same(digits, generate(400, seed=5, styles="world"))
    assert not torch.equal(digits.images, generate(400, seed=5).images)


def test_a_seed_decides_everything_and_threads_nothing(one_thread: None) -> None:
    one = generate(300, seed=7)
    torch.set_num_threads(2)
    torch.manual_seed(123)  # the global generator plays no part
    state = torch.get_rng_state()
    assert same(one, generate(300, seed=7))
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one.images, generate(300, seed=8).images)


def test_they_are_kept_and_read_again_until_the_next_version(
    tmp_path: Path, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = load_synthetic(tmp_path / "data")
    assert (len(train), len(test)) == (20, 3)
    assert not torch.equal(train.images[:3], test.images)
    assert len(lines()) == 1
    again = load_synthetic(tmp_path / "data")
    assert lines() == []
    assert all(map(same, again, (train, test)))
    assert again[0].images.dtype == torch.uint8
    monkeypatch.setattr(synthetic, "FILE_NAME", "digits-2.npz")
    load_synthetic(tmp_path / "data")
    load_synthetic(tmp_path / "data")
    assert len(lines()) == 1


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "another archive"])
def test_digits_in_a_damaged_file_are_drawn_again(
    tmp_path: Path, lines: Callable[[], list[str]], damage: str
) -> None:
    train, _ = load_synthetic(tmp_path)
    path = tmp_path / "synthetic" / synthetic.FILE_NAME
    whole = path.read_bytes()
    if damage == "another archive":
        np.savez(path, x_train=train.images.numpy(), y_train=train.labels.numpy())
    else:
        middle = len(whole) // 2
        altered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[:-1], "altered": altered, "empty": b""}[damage])
    lines()
    assert same(load_synthetic(tmp_path)[0], train)
    assert len(lines()) == 1
    assert path.read_bytes() == whole


def test_the_cache_serves_where_the_folder_cannot_be_written(
    tmp_path: Path, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    train, _ = load_synthetic(blocked)
    assert (tmp_path / "cache/mnist-ce/synthetic" / synthetic.FILE_NAME).is_file()
    assert str(blocked) in lines()[-1]
    assert same(load_synthetic(blocked)[0], train)
    assert lines() == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert same(load_synthetic(blocked)[0], train)  # drawn, where nothing can be written
    assert len(lines()) == 3


def test_several_at_the_same_time(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        splits = list(pool.map(load_synthetic, [tmp_path] * 4))
    assert all(same(train, splits[0][0]) for train, _ in splits)
    assert len(list((tmp_path / "synthetic").iterdir())) == 1

from __future__ import annotations

import gzip
import hashlib
import importlib.abc
import logging
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision.datasets

from mnist_ce.data import files, registry
from mnist_ce.data.dataset import CLASS_NAMES, Dataset, Split, load_dataset
from mnist_ce.data.download import DownloadError
from mnist_ce.data.idx import idx_header
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.files import cache_dir, write_atomically

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
SHAPES = {
    "train-images-idx3-ubyte": (20, 28, 28),
    "train-labels-idx1-ubyte": (20,),
    "t10k-images-idx3-ubyte": (10, 28, 28),
    "t10k-labels-idx1-ubyte": (10,),
}
NAMES = list(SHAPES)
IMAGES = NAMES[0]


def md5(content: bytes | bytearray) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@dataclass
class World:
    """Three small datasets that the program takes for the real ones, and a place to put them."""

    data_dir: Path
    cache: Path
    mirror: Path
    raw: dict[str, dict[str, bytes]]
    packed: dict[str, dict[str, bytes]]
    log: pytest.LogCaptureFixture

    @property
    def warnings(self) -> list[str]:
        return [r.getMessage() for r in self.log.records if r.levelno >= logging.WARNING]

    def load(self, name: str = "mnist") -> Dataset:
        self.log.clear()
        return load_dataset(name, self.data_dir)

    def put(self, folder: Path, contents: dict[str, bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    def put_packed(self, folder: Path, name: str = "mnist") -> None:
        self.put(folder, {f"{file}.gz": content for file, content in self.packed[name].items()})

    def serve(self, name: str = "mnist") -> None:
        self.put_packed(self.mirror, name)

    def check(self, dataset: Dataset, name: str = "mnist") -> None:
        raw = self.raw[name]
        assert dataset.name == name
        assert dataset.class_names == CLASS_NAMES[name]
        assert dataset.digest == hashlib.sha256(b"".join(raw[file] for file in NAMES)).hexdigest()
        for split, images, labels in (
            (dataset.train, NAMES[0], NAMES[1]),
            (dataset.test, NAMES[2], NAMES[3]),
        ):
            assert split.images.dtype == torch.uint8
            assert split.labels.dtype == torch.int64
            assert split.images.shape == SHAPES[images]
            assert split.images.numpy().tobytes() == raw[images][16:]
            assert bytes(split.labels.tolist()) == raw[labels][8:]


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> World:
    generator = torch.Generator().manual_seed(3)
    raw: dict[str, dict[str, bytes]] = {}
    packed: dict[str, dict[str, bytes]] = {}
    mirror = tmp_path / "mirror"
    for name, class_name in CLASSES.items():
        raw[name] = {
            file: idx_header(shape)
            + bytes(
                torch.randint(
                    256 if len(shape) == 3 else 10, shape, generator=generator, dtype=torch.uint8
                )
                .flatten()
                .tolist()
            )
            for file, shape in SHAPES.items()
        }
        packed[name] = {file: gzip.compress(raw[name][file], mtime=0) for file in NAMES}
        known = getattr(torchvision.datasets, class_name)
        resources = [(f"{file}.gz", md5(packed[name][file])) for file in NAMES]
        monkeypatch.setattr(known, "resources", resources)
        monkeypatch.setattr(known, "mirrors", [mirror.as_uri() + "/"])
    known_files = {file: (SHAPES[file], md5(raw["mnist"][file])) for file in NAMES}
    monkeypatch.setattr(registry, "FILES", known_files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return World(tmp_path / "data", tmp_path / "xdg" / "mnist-ce", mirror, raw, packed, caplog)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


Layout = Callable[[Path, str], Path]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "layout",
    [
        lambda root, name: root / CLASSES[name] / "raw",
        lambda root, name: root / name,
        lambda root, name: root,
    ],
    ids=["torchvision", "named", "flat"],
)
def test_packed_files_are_found_and_unpacked(world: World, name: str, layout: Layout) -> None:
    world.put_packed(layout(world.data_dir, name), name)
    world.check(world.load(name), name)
    assert world.warnings == []
    folder = world.data_dir / CLASSES[name] / "raw"
    assert {file: (folder / file).read_bytes() for file in NAMES} == world.raw[name]
    # From now on they are all that is needed.
    for path in world.data_dir.rglob("*.gz"):
        path.unlink()
    world.check(world.load(name), name)
    assert world.warnings == []


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
def test_unpacked_mnist_is_found(world: World, place: str) -> None:
    world.put(world.data_dir / place, world.raw["mnist"])
    world.check(world.load())
    assert world.warnings == []


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_unpacked_relatives_are_watched_from_their_first_use(world: World, name: str) -> None:
    folder = world.data_dir / CLASSES[name] / "raw"
    world.put(folder, world.raw[name])
    world.check(world.load(name), name)
    assert len(world.warnings) == 4
    assert "was checked by its size, header and labels only" in world.warnings[0]
    world.check(world.load(name), name)
    assert world.warnings == []

    altered = bytearray(world.raw[name][IMAGES])
    altered[500] ^= 1
    (folder / IMAGES).write_bytes(altered)
    with pytest.raises(DownloadError) as caught:
        world.load(name)
    found, expected = md5(altered), md5(world.raw[name][IMAGES])
    assert f"{folder / IMAGES} is damaged (MD5 {found}, expected {expected}" in str(caught.value)
    assert (folder / IMAGES).read_bytes() == altered


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (IMAGES, lambda content: content[:-1], "15,695 bytes, expected 15,696"),
        (IMAGES, lambda content: content + b"\0", "15,697 bytes, expected at most 15,696"),
        (IMAGES, lambda content: b"\1" + content[1:], "its header is 01000803"),
        (NAMES[1], lambda content: content[:-1] + b"\x0a", "a label is not below 10"),
    ],
)
def test_unpacked_relatives_must_look_right(
    world: World, file: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    folder = world.data_dir / "KMNIST" / "raw"
    world.put(folder, {**world.raw["kmnist"], file: change(world.raw["kmnist"][file])})
    with pytest.raises(DownloadError) as caught:
        world.load("kmnist")
    assert f"{folder / file} is damaged ({reason}" in str(caught.value)


def test_the_packed_file_beside_decides_about_an_unpacked_one(world: World) -> None:
    folder = world.data_dir / "KMNIST" / "raw"
    altered = world.raw["kmnist"][IMAGES][:-1] + b"?"
    world.put(folder, {**world.raw["kmnist"], IMAGES: altered})
    world.put_packed(folder, "kmnist")
    world.check(world.load("kmnist"), "kmnist")
    assert (folder / f"{IMAGES}.damaged").read_bytes() == altered


def test_datasets_of_the_same_file_names_are_told_apart(world: World) -> None:
    world.put_packed(world.data_dir, "fashion-mnist")
    with pytest.raises(DownloadError, match=r"no good train-images-idx3-ubyte\(.gz\) of mnist"):
        world.load("mnist")
    assert world.warnings == []  # nothing is damaged: it is another dataset
    world.check(world.load("fashion-mnist"), "fashion-mnist")
    world.put(world.data_dir, world.raw["mnist"])
    world.check(world.load("mnist"))
    # Unpacked and flat, nothing says whose they are.
    with pytest.raises(DownloadError):
        world.load("kmnist")


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
@pytest.mark.parametrize("form", ["", ".gz"])
def test_a_damaged_file_is_named_and_replaced(
    world: World, file: str, damage: str, form: str
) -> None:
    folder = world.data_dir / "MNIST" / "raw"
    world.put(folder, world.raw["mnist"])
    if form:
        (folder / file).unlink()
    good = world.packed["mnist"][file] if form else world.raw["mnist"][file]
    bad = {"truncated": good[:-5], "altered": good[:-1] + b"?", "empty": b""}[damage]
    (folder / (file + form)).write_bytes(bad)

    with pytest.raises(DownloadError) as caught:
        world.load()
    report = f"{folder / (file + form)} is damaged (MD5 {md5(bad)}, expected {md5(good)}; "
    assert str(caught.value).startswith(report)
    assert "\n" not in str(caught.value)
    assert len(world.warnings) == 1
    assert world.warnings[0].startswith(report)

    world.serve()
    world.check(world.load())
    assert len(world.warnings) == 1
    if not form:
        assert (folder / f"{file}.damaged").read_bytes() == bad
    world.check(world.load())
    assert world.warnings == []


def test_a_file_much_too_large_is_not_even_hashed(world: World) -> None:
    folder = world.data_dir / "MNIST" / "raw"
    world.put(folder, world.raw["mnist"])
    with (folder / IMAGES).open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(DownloadError, match="1,099,511,627,776 bytes, expected at most 15,696"):
        world.load()


def test_a_packed_bomb_stops_at_the_expected_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    resources = [(f"{IMAGES}.gz", md5(bomb)), *torchvision.datasets.MNIST.resources[1:]]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    images_file, *_ = registry.files_of("mnist")
    with pytest.raises(DataError, match=r"bomb\.gz is damaged \(15,697 bytes, expected 15,696"):
        images_file.unpack(bomb, "bomb.gz")
    world.put(world.data_dir, {f"{IMAGES}.gz": bomb})
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz"):
        world.load()


def test_packed_data_that_ends_early_or_is_no_gzip(world: World) -> None:
    images_file, *_ = registry.files_of("mnist")
    packed = world.packed["mnist"][IMAGES]
    assert images_file.unpack(packed, "a.gz") == world.raw["mnist"][IMAGES]
    for wrong in (packed[:-8], packed[:100], b"<html>", b""):
        with pytest.raises(DataError, match=r"a\.gz is damaged"):
            images_file.unpack(wrong, "a.gz")


@pytest.mark.parametrize("name", CLASSES)
def test_download(world: World, name: str) -> None:
    world.serve(name)
    world.check(world.load(name), name)
    assert world.warnings == []


def test_a_mirror_that_is_given_is_the_only_one(
    world: World, tmp_path: Path, log_lines: Callable[[], list[str]]
) -> None:
    world.serve()
    with pytest.raises(DownloadError) as caught:
        load_dataset("mnist", world.data_dir, mirror=(tmp_path / "no").as_uri())
    assert str(world.mirror) not in str(caught.value)
    assert not world.data_dir.exists()  # a failure leaves nothing behind

    mirror = world.mirror.as_uri()
    world.check(load_dataset("mnist", world.data_dir, mirror=mirror))
    assert log_lines()[1:] == [f"downloading {mirror}/{file}.gz" for file in NAMES]


def unwritable_below_a_file(world: World) -> None:
    world.data_dir.write_text("a file, not a folder")
    world.serve()


def unwritable_by_mode(world: World) -> None:
    world.put_packed(world.data_dir)
    world.data_dir.chmod(0o555)  # root is asked to respect it too


def unwritable_with_folders_inside(world: World) -> None:
    world.put_packed(world.data_dir / "MNIST" / "raw")
    world.data_dir.chmod(0o555)


@pytest.mark.parametrize(
    "make", [unwritable_below_a_file, unwritable_by_mode, unwritable_with_folders_inside]
)
def test_a_folder_that_cannot_be_written(world: World, make: Callable[[World], None]) -> None:
    make(world)
    before = contents_of(world.data_dir)
    try:
        world.check(world.load())
        assert contents_of(world.data_dir) == before
        assert contents_of(world.cache / "MNIST" / "raw") == world.raw["mnist"]
        world.check(world.load())
    finally:
        world.data_dir.chmod(0o755)


def test_a_disk_that_fills_up_in_between(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes | str) -> None:
        if world.data_dir in path.parents and path.name == NAMES[2]:
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr("mnist_ce.data.files.write_atomically", full)
    world.put_packed(world.data_dir)
    world.check(world.load())
    assert contents_of(world.cache / "MNIST" / "raw") == world.raw["mnist"]


def test_nowhere_to_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.data_dir.write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.data_dir / "below"))
    world.serve()
    with pytest.raises(DataError) as caught:
        world.load()
    assert f"{world.data_dir}: {world.data_dir} is not a folder" in str(caught.value)
    assert "give a data folder that can be written" in str(caught.value)


def test_an_old_processed_folder_is_not_read_instead(world: World) -> None:
    # torchvision's class prefers these files, which nobody has verified.
    folder = world.data_dir / "MNIST" / "processed"
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), folder / name)
    world.put(world.data_dir / "MNIST" / "raw", world.raw["mnist"])
    world.check(world.load())


def test_two_at_the_same_time(world: World) -> None:
    folder = world.data_dir / "MNIST" / "raw"
    world.put(folder, {IMAGES: b"damaged"})
    world.put_packed(world.data_dir)
    loaded: list[Dataset] = []
    barrier = threading.Barrier(4)

    def load() -> None:
        barrier.wait()
        loaded.append(load_dataset("mnist", world.data_dir))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    for dataset in loaded:
        world.check(dataset)
    assert contents_of(folder) == {**world.raw["mnist"], f"{IMAGES}.damaged": b"damaged"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Stand in for the synthetic digits, which take seconds to draw."""
    split = Split(torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([3, 1]))
    module = types.ModuleType("mnist_ce.data.synthetic.generate")
    vars(module)["load_synthetic"] = lambda _: (split, split)
    monkeypatch.setitem(sys.modules, "mnist_ce.data.synthetic.generate", module)
    return split


@pytest.fixture
def silent_mirrors(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two mirrors that accept a connection and never answer."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address, address])
        yield


def test_auto_is_mnist_where_it_can_be(world: World, drawn: Split) -> None:
    world.serve()
    world.check(world.load("auto"))
    assert world.warnings == []


def check_fall_back(world: World, drawn: Split) -> None:
    dataset = world.load("auto")
    assert dataset.name == "synthetic"
    assert dataset.train is drawn
    assert world.warnings[-1].startswith("NOT MNIST: using the built-in SYNTHETIC digits instead")
    assert str(world.data_dir) in world.warnings[-1]


def test_auto_falls_back_loudly(world: World, drawn: Split) -> None:
    check_fall_back(world, drawn)
    assert len(world.warnings) == 1


def test_auto_names_a_damaged_file_before_it_falls_back(world: World, drawn: Split) -> None:
    world.put(world.data_dir / "MNIST" / "raw", {IMAGES: b"damaged"})
    check_fall_back(world, drawn)
    assert f"{IMAGES} is damaged" in world.warnings[0]


@pytest.mark.usefixtures("silent_mirrors")
def test_auto_does_not_wait_for_each_file(
    world: World, drawn: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FALLBACK_TIMEOUT_S", 0.6)
    world.log.set_level(logging.INFO, "mnist_ce")
    check_fall_back(world, drawn)
    assert world.warnings[-1].count("stalled: nothing for 0.3 s") == 2
    downloads = [r.getMessage() for r in world.log.records if "downloading" in r.getMessage()]
    assert len(downloads) == 2  # of one file, from both mirrors


@pytest.mark.slow
@pytest.mark.usefixtures("silent_mirrors")
def test_auto_gives_up_within_15_seconds(world: World, drawn: Split) -> None:
    started = time.monotonic()
    check_fall_back(world, drawn)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("name", CLASSES)
def test_a_dataset_asked_for_by_name_is_never_another(
    world: World, drawn: Split, name: str
) -> None:
    with pytest.raises(DownloadError) as caught:
        world.load(name)
    assert f"of {name} in {world.data_dir}" in str(caught.value)


def test_names() -> None:
    assert list(CLASS_NAMES) == ["mnist", "fashion-mnist", "kmnist", "synthetic"]
    assert CLASS_NAMES["mnist"] == CLASS_NAMES["synthetic"] == tuple("0123456789")
    assert list(CLASS_NAMES["fashion-mnist"]) == torchvision.datasets.FashionMNIST.classes
    assert list(CLASS_NAMES["kmnist"]) == torchvision.datasets.KMNIST.classes


def test_wrong_usage_is_found_before_any_work(world: World) -> None:
    for unknown in ("emnist", ""):
        with pytest.raises(UsageError, match=r"no dataset '.*'; choose from mnist, fashion-mnist"):
            world.load(unknown)
    with pytest.raises(UsageError, match=r"data\.mirror"):
        load_dataset("mnist", world.data_dir, mirror="ftp://a")


@pytest.mark.parametrize("base", [None, "xdg"])
def test_the_cache_follows_the_xdg_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if base is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / base))
    if sys.platform == "linux":
        assert cache_dir() == tmp_path / (base or ".cache") / "mnist-ce"


class Mismatched(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")


def test_a_torchvision_of_another_torch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Mismatched(), *sys.meta_path])
    with pytest.raises(DataError) as caught:
        world.load("auto")  # what is broken is not the data: no falling back
    message = str(caught.value)
    assert f"does not work with torch {torch.__version__.split('+')[0]}" in message
    assert "(operator torchvision::nms does not exist)" in message
    assert "https://pytorch.org/get-started/locally/" in message
    assert "\n" not in message


def test_the_real_mnist(mnist_dir: Path, log_warnings: Callable[[], list[str]]) -> None:
    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in mnist_dir.rglob("*"))

    marked = not mnist_dir.stat().st_mode & 0o222 or not os.access(mnist_dir, os.W_OK)
    before = listing()
    dataset = load_dataset("mnist", mnist_dir)
    if marked:
        assert listing() == before
    assert log_warnings() == []
    assert dataset.train.images.shape == (60_000, 28, 28)
    assert dataset.test.images.shape == (10_000, 28, 28)
    assert dataset.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    # sha256sum of the four unpacked files, one after the other
    assert dataset.digest == "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"

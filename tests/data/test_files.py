"""The files of MNIST and its relatives: where they lie, in what form, damaged or not at all."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.abc
import os
import shutil
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from mnist_ce.data import files
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.files import DownloadError, download_file, fetch
from mnist_ce.data.splits import DIGITS, Dataset, Split, idx_header
from mnist_ce.system.errors import DataError, UsageError
from mnist_ce.system.files import md5_of, write_atomically

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = list(files.FILES)
SHAPES = dict(zip(NAMES, [(20, 28, 28), (20,), (10, 28, 28), (10,)], strict=True))
IMAGES = NAMES[0]


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


class World:
    """Three small datasets that the program takes for the real ones, and a place to put them."""

    def __init__(self, root: Path, log_warnings: Callable[[], list[str]]) -> None:
        self.data_dir, self.mirror, self.cache = root / "data", root / "mirror", root / "xdg"
        self.log_warnings, self.warnings = log_warnings, list[str]()
        random = np.random.default_rng(3)
        self.raw = {
            name: {
                file: idx_header(*shape)
                + random.integers(256 if len(shape) == 3 else 10, size=shape, dtype="u1").tobytes()
                for file, shape in SHAPES.items()
            }
            for name in CLASSES
        }
        self.packed = {
            name: {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in raw.items()}
            for name, raw in self.raw.items()
        }

    def folder(self, name: str = "mnist") -> Path:
        return self.data_dir / CLASSES[name] / "raw"

    def load(self, name: str = "mnist") -> Dataset:
        num_before = len(self.log_warnings())
        try:
            return load_dataset(name, self.data_dir)
        finally:
            self.warnings = self.log_warnings()[num_before:]

    def check(self, dataset: Dataset, name: str = "mnist") -> None:
        raw = self.raw[name]
        assert dataset.name == name
        assert dataset.digest == hashlib.sha256(b"".join(raw.values())).hexdigest()
        for split, (images, labels) in ((dataset.train, NAMES[:2]), (dataset.test, NAMES[2:])):
            assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
            assert split.images.numpy().tobytes() == raw[images][16:]
            assert bytes(split.labels.tolist()) == raw[labels][8:]

    def check_load(self, name: str = "mnist", num_warnings: int = 0) -> None:
        self.check(self.load(name), name)
        assert len(self.warnings) == num_warnings

    def error(self, name: str = "mnist") -> str:
        with pytest.raises(DownloadError) as caught:
            self.load(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_warnings: Callable[[], list[str]]
) -> World:
    world = World(tmp_path, log_warnings)
    for name, class_name in CLASSES.items():
        known = getattr(torchvision.datasets, class_name)
        resources = [(file, md5_of(packed)) for file, packed in world.packed[name].items()]
        monkeypatch.setattr(known, "resources", resources)
        monkeypatch.setattr(known, "mirrors", [world.mirror.as_uri() + "/"])
    known_files = {file: (SHAPES[file], md5_of(world.raw["mnist"][file])) for file in NAMES}
    monkeypatch.setattr(files, "FILES", known_files)
    sizes = {file: len(content) for file, content in world.raw["mnist"].items()}
    monkeypatch.setattr(files, "SIZES", sizes)
    digest = hashlib.sha256(b"".join(world.raw["mnist"].values())).hexdigest()
    monkeypatch.setitem(files.DIGESTS, "mnist", digest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.cache))
    return world


ANYWHERE = ["{class_name}/raw/{file}", "{dataset}/{file}", "{file}"]
UNDER_ANY_NAME = [
    "{dotted}",  # as 7-Zip unpacks them
    "{file}/{file}",  # as Kaggle serves them
    "archive/{dotted}",
    "{class_name}/raw/{dotted}/{dotted}",
]


@pytest.mark.parametrize(
    ("name", "place", "form", "is_found"),
    [
        *((name, place, ".gz", 1) for name in CLASSES for place in [*ANYWHERE, "../mirror/{file}"]),
        *(("mnist", place, form, 1) for place in ANYWHERE[:2] for form in ("", ".GZ")),
        *(("mnist", place, form, 1) for place in UNDER_ANY_NAME for form in ("", ".GZ")),
        ("kmnist", "archive/{dotted}", ".gz", 1),
        # Only the MD5s of the relatives' packed files are known.
        *(("kmnist", "{class_name}/raw/{file}", form, 0) for form in ("", ".GZ")),
    ],
)
def test_where_files_are_found_and_in_what_form(
    world: World, name: str, place: str, form: str, is_found: int
) -> None:
    for file in NAMES:
        names = {"dotted": file.replace("-idx", ".idx"), "file": file}
        path = world.data_dir / place.format(dataset=name, class_name=CLASSES[name], **names)
        raw = world.raw[name][file]
        contents = {".gz": world.packed[name][f"{file}.gz"], ".GZ": gzip.compress(raw, 1, mtime=1)}
        put(path.parent, {path.name + form: contents.get(form, raw)})
    if not is_found:
        assert f"{world.data_dir} does not hold all of {name} (missing: " in world.error(name)
        return
    world.check_load(name)
    shutil.rmtree(world.mirror, ignore_errors=True)
    world.check_load(name)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-5],
    "altered": lambda content: content[:-1] + b"?",
    "too long": lambda content: bytes(30_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "file", "form"),
    [("mnist", IMAGES, ""), ("mnist", NAMES[3], ".gz"), ("kmnist", IMAGES, ".gz")],
)
def test_a_damaged_file_is_named_and_replaced(
    world: World, name: str, damage: str, form: str, file: str
) -> None:
    folder = world.folder(name)
    put(folder, world.packed[name] if name == "kmnist" else world.raw[name])
    for path in (folder / file, folder / f"{file}.gz"):
        path.unlink(missing_ok=True)
    good = world.packed[name][f"{file}.gz"] if form else world.raw[name][file]
    path, bad = folder / (file + form), DAMAGES[damage](good)
    path.write_bytes(bad)
    message = world.error(name)
    assert message.startswith(f"{path} is damaged (")
    if damage != "too long":
        assert f"(MD5 {md5_of(bad)}, expected {md5_of(good)}; " in message
    assert [line.startswith(f"{path} is damaged (") for line in world.warnings] == [True]
    put(world.mirror, world.packed[name])
    world.check_load(name, num_warnings=1)
    assert path.read_bytes() == bad  # it may be the user's own
    shutil.rmtree(world.mirror)
    world.check_load(name, num_warnings=int(name == "kmnist"))  # what was downloaded is kept


def test_what_is_missing_and_what_is_there_is_listed(world: World) -> None:
    raw = {name.replace("-idx", ".idx"): content for name, content in world.raw["mnist"].items()}
    images = IMAGES.replace("-idx", ".idx")
    put(world.data_dir, {**raw, images: raw[images][:-1] + b"?", ".hidden": b""})
    put(world.data_dir, {f"{name}.zip": b"" for name in "abcdef"})
    message = world.error()
    assert f"missing: {IMAGES}; found: {', '.join(NAMES[1:])}; other files there: " in message
    assert "a.zip, b.zip, " in message
    assert ", …); " in message


def test_datasets_of_the_same_file_names_are_told_apart(world: World) -> None:
    put(world.data_dir, world.packed["fashion-mnist"])
    others = ", ".join(sorted(world.packed["mnist"]))
    assert f"(missing: {', '.join(NAMES)}; other files there: {others}); " in world.error()
    assert world.warnings == []  # nothing is damaged: it is another dataset
    world.check_load("fashion-mnist")
    put(world.data_dir, world.raw["mnist"])
    world.check_load()


def test_a_mirror_that_is_given_is_the_only_one(
    world: World, tmp_path: Path, log_lines: Callable[[], list[str]]
) -> None:
    put(world.mirror, world.packed["mnist"])
    with pytest.raises(DownloadError) as caught:
        load_dataset("mnist", world.data_dir, mirror=(tmp_path / "no").as_uri())
    assert str(world.mirror) not in str(caught.value)
    assert not world.data_dir.exists()  # a failure leaves nothing behind
    mirror = world.mirror.as_uri()
    world.check(load_dataset("mnist", world.data_dir, mirror=f"{mirror}//"))
    assert log_lines()[1:] == [f"downloading {mirror}/{file}.gz" for file in NAMES]
    with pytest.raises(UsageError, match=r"data\.mirror: 'ftp://x' must start with http://"):
        load_dataset("mnist", world.data_dir, mirror="ftp://x")
    with pytest.raises(UsageError, match="no dataset 'emnist'; choose from mnist, fashion-mnist"):
        world.load("emnist")


@pytest.mark.parametrize(
    "obstacle", ["a file", "its mode", "with folders inside", "a full disk", "a pipe"]
)
def test_where_a_folder_cannot_be_written_the_cache_serves(
    world: World, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    def full(path: Path, content: bytes | str) -> None:
        if world.data_dir in path.parents and path.name == NAMES[2]:
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    if obstacle == "a file":
        world.data_dir.write_text("a file, not a folder")
        put(world.mirror, world.packed["mnist"])
    else:
        put(world.folder() if "inside" in obstacle else world.data_dir, world.packed["mnist"])
    if obstacle == "a full disk":
        monkeypatch.setattr(files, "write_atomically", full)
    elif obstacle == "a pipe":
        world.folder().mkdir(parents=True)
        os.mkfifo(world.folder() / NAMES[1])
    elif obstacle != "a file":
        world.data_dir.chmod(0o555)  # root is asked to respect it too
    before = contents_of(world.data_dir)
    try:
        world.check_load()
        assert contents_of(world.cache / "mnist-ce" / "MNIST" / "raw") == world.raw["mnist"]
        world.check_load()
    finally:
        world.data_dir.chmod(0o755)
    if obstacle not in ("a full disk", "a pipe"):
        assert contents_of(world.data_dir) == before
    if obstacle == "a file":
        monkeypatch.setenv("XDG_CACHE_HOME", str(world.data_dir / "below"))
        world.check_load()  # downloaded again, where nothing can be written


def test_an_old_processed_folder_is_not_read_instead(world: World) -> None:
    # An old torchvision prefers these files, which nobody has verified.
    folder = world.data_dir / "MNIST" / "processed"
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), folder / name)
    put(world.data_dir, world.packed["mnist"])
    put(world.folder(), {IMAGES: b"damaged"})
    with ThreadPoolExecutor(4) as pool:  # several at the same time
        for dataset in pool.map(lambda _: load_dataset("mnist", world.data_dir), range(4)):
            world.check(dataset)


def test_auto_is_mnist_where_it_can_be_and_falls_back_loudly(
    world: World, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[str]]
) -> None:
    drawn = Split(torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([3, 1]))
    monkeypatch.setattr("mnist_ce.data.dataset.load_synthetic", lambda data_dir: (drawn, drawn))

    def check_fall_back() -> None:
        dataset = world.load("auto")
        assert (dataset.name, dataset.train) == ("synthetic", drawn)
        assert world.warnings[-1].startswith("NOT MNIST: using the built-in SYNTHETIC digits")
        assert any(f"the folder {world.data_dir} does not hold all" in line for line in log_lines())

    check_fall_back()
    assert len(world.warnings) == 1
    put(world.folder(), {IMAGES: b"damaged"})
    check_fall_back()
    assert f"{IMAGES} is damaged" in world.warnings[0]

    assert files.FALLBACK_TIMEOUT_S < 15
    monkeypatch.setattr(files, "FALLBACK_TIMEOUT_S", 0.6)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"  # accepts and never answers
        patch.setattr(torchvision.datasets.MNIST, "mirrors", [address, address])
        num_before = len(log_lines())
        check_fall_back()
    lines = log_lines()[num_before:]
    assert "".join(lines).count("stalled: nothing for 0.3 s") == 2
    # Of one file, from both mirrors.
    assert sum(line.startswith("downloading") for line in lines) == 2

    put(world.mirror, world.packed["mnist"])
    world.check(world.load("auto"))
    assert len(world.warnings) == 1  # of the damaged file


class Mismatched(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")


def test_a_torchvision_of_another_torch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Mismatched(), *sys.meta_path])
    with pytest.raises(DataError) as caught:
        world.load("auto")  # what is broken is not the data: no falling back
    message = str(caught.value)
    assert f"does not work with torch {torch.__version__.split('+')[0]}" in message
    assert "(operator torchvision::nms does not exist)" in message
    put(world.folder(), world.raw["mnist"])
    world.check_load()  # files in place need no torchvision


def test_the_real_mnist(mnist_dir: Path, log_warnings: Callable[[], list[str]]) -> None:
    dataset = load_dataset("mnist", mnist_dir)
    assert (log_warnings(), dataset.class_names) == ([], DIGITS)
    assert dataset.train.images.shape == (60_000, 28, 28)
    assert dataset.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    # sha256sum of the four unpacked files, one after the other
    assert dataset.digest == "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"


CONTENT = bytes(range(256)) * 40
CORRUPT = CONTENT[:-1] + b"?"
PAGE = b"\n<html>".ljust(len(CONTENT))


class Mirrors(BaseHTTPRequestHandler):
    """One server, each first part of the path a mirror with its own vice."""

    stop = threading.Event()
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        vice = self.path.split("/")[1]
        if vice == "missing":
            self.send_error(404)
        elif vice == "silent":
            self.stop.wait()
        else:
            self.send_response(200)
            if vice not in ("endless", "close"):
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has given up
                self.send_body(vice)

    def send_body(self, vice: str) -> None:
        contents = {
            "short": CONTENT[:1000],
            "corrupt": CORRUPT,
            "login": PAGE,
            "stalled": CONTENT[:5000],
        }
        match vice:
            case "dripping":  # a byte at a time keeps a socket's timeout from ever firing
                while not self.stop.wait(0.02):
                    self.wfile.write(b"x")
            case "slow":  # 10 pieces, 0.05 s apart: longer than the waiting time, but moving
                for start in range(0, len(CONTENT), 1024):
                    self.wfile.write(CONTENT[start : start + 1024])
                    self.stop.wait(0.05)
            case "endless":
                while not self.stop.is_set():
                    self.wfile.write(CONTENT)
            case _:
                self.wfile.write(contents.get(vice, CONTENT))
        if vice == "stalled":
            self.stop.wait()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Mirrors, "stop", threading.Event())
    monkeypatch.setattr(Mirrors, "requests", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirrors) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        Mirrors.stop.set()
        httpd.shutdown()


def read(url: str, stall_seconds: float = 0.4) -> bytes:
    return fetch(url, max_bytes=20_000, stall_seconds=stall_seconds)


@pytest.mark.parametrize("way", ["good", "close", "slow"])
def test_a_file_comes_whole(server: str, tmp_path: Path, way: str) -> None:
    assert read(f"{server}/{way}/file.gz") == CONTENT
    (tmp_path / "file.gz").write_bytes(CONTENT)
    assert read(f"{tmp_path.as_uri()}/file.gz") == CONTENT


@pytest.mark.parametrize(
    ("vice", "reason"),
    [
        ("silent", "stalled: nothing for 0.4 s after 0 bytes"),
        ("stalled", "stalled: nothing for 0.4 s after 5,000 bytes"),
        ("dripping", "stalled"),
        ("endless", "too long: more than 20,000 bytes"),
        ("short", "^cut short: 1,000 of 10,240 bytes$"),
        ("missing", "^HTTP Error 404: Not Found$"),
        ("nowhere", "^Connection refused$"),
        ("folder", "^No such file or directory"),
    ],
)
def test_an_attempt_ends_with_its_reason(server: str, vice: str, reason: str) -> None:
    others = {"nowhere": "http://127.0.0.1:1/", "folder": "file:///nowhere/"}
    with pytest.raises(DownloadError, match=reason):
        read(others.get(vice, f"{server}/{vice}/") + "file.gz")


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait())
    try:
        with pytest.raises(DownloadError, match="stalled"):
            read("http://mirror.invalid/file.gz", stall_seconds=0.2)
    finally:
        release.set()


FILE = files.DataFile("a", 20_000, md5_of(CONTENT), md5_of(CONTENT))


def test_the_next_mirror_is_tried_and_stays_first(
    server: str, log_lines: Callable[[], list[str]]
) -> None:
    vices = ["silent", "stalled", "short", "corrupt", "missing", "good", "never-asked"]
    mirrors = deque(f"{server}/{vice}/" for vice in vices)
    for name in ("a", "b"):
        file = replace(FILE, name=name)
        assert download_file(file, mirrors, stall_seconds=0.3) == CONTENT
    assert Mirrors.requests == [*(f"/{vice}/a.gz" for vice in vices[:-1]), "/good/b.gz"]
    assert log_lines()[0] == f"downloading {server}/silent/a.gz"
    assert len(log_lines()) == 7


def test_the_error_has_every_mirrors_reason(server: str) -> None:
    mirrors = deque(f"{server}/{vice}/" for vice in ("short", "corrupt", "login"))
    with pytest.raises(DownloadError) as caught:
        download_file(FILE, mirrors, stall_seconds=1)
    assert str(caught.value).split("; ") == [
        f"{server}/short/a.gz: cut short: 1,000 of 10,240 bytes",
        f"{server}/corrupt/a.gz: has MD5 {md5_of(CORRUPT)}, expected MD5 {md5_of(CONTENT)}",
        f"{server}/login/a.gz: has a web page, as of a login, expected MD5 {md5_of(CONTENT)}",
    ]


def test_files_that_a_mirror_packed_anew_are_taken(world: World) -> None:
    again = {f"{file}.gz": gzip.compress(raw, 1) for file, raw in world.raw["mnist"].items()}
    put(world.mirror, again)
    world.check_load()

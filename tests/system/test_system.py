"""Processes, devices and files behave as the rest of the program relies on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import torch

from mnist_ce.system.device import reproducible
from mnist_ce.system.files import write_atomically


@pytest.mark.parametrize("before", [None, ":16:8"])
def test_reproducible_restores_what_it_sets(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if before is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with contextlib.suppress(KeyError), reproducible(seed=3, threads=threads + 1):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (before or ":4096:8")
        assert torch.get_num_threads() == threads + 1
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("missing/file", FileNotFoundError),
        ("file/below", NotADirectoryError),
        ("folder", IsADirectoryError),
    ],
)
def test_an_error_of_an_atomic_write_names_the_target(
    place: str, error: type[OSError], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error) as caught:
        write_atomically(tmp_path / place, "new")
    assert caught.value.filename == str(tmp_path / place)
    assert caught.value.filename2 is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


def test_an_atomic_write_keeps_links_devices_and_pipes(tmp_path: Path) -> None:
    target, link, dangling, pipe = (tmp_path / name for name in ("a", "b", "c", "d"))
    target.write_text("old")
    link.symlink_to("a")
    dangling.symlink_to("new")
    for path in (link, dangling):
        write_atomically(path, "1")
        assert path.is_symlink()
    assert target.read_text() == (tmp_path / "new").read_text() == "1"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "2")
    assert os.read(reader, 9) == b"2"
    os.close(reader)
    (tmp_path / "null").symlink_to(os.devnull)
    write_atomically(tmp_path / "null", "3")
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d", "new", "null"}

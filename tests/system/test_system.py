"""Processes, devices and files behave as the rest of the program relies on."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.system.device import reproducible
from mnist_ce.system.errors import UsageError
from mnist_ce.system.files import expand_home, read_regular, write_atomically


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
    ("text", "expected"),
    [
        ("~", "/home/me"),
        ("~/a~b", "/home/me/a~b"),
        ("csv:~/x.csv", "csv:/home/me/x.csv"),
        ("mnist+folder:~/x", "mnist+folder:/home/me/x"),
        ("sqlite:///~/x.db", "sqlite:////home/me/x.db"),
        ("file://~/mirror", "file:///home/me/mirror"),
        ("a~b", "a~b"),
        ("./~", "./~"),
        ("~a file~", "~a file~"),
        ("~nobody-of-this-name/x", None),
    ],
)
def test_a_home_folder_is_expanded_wherever_a_path_begins(
    text: str, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    for name in ("~", "~a file~"):
        Path(name).touch()
    if expected is None:
        with pytest.raises(UsageError, match="there is no user 'nobody-of-this-name'"):
            expand_home(text)
    else:
        assert expand_home(text) == expected


def test_a_pipe_of_the_shell_is_read_to_a_limit_and_no_other(tmp_path: Path) -> None:
    def through_pipe(content: bytes, max_bytes: int) -> bytes:
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        try:
            return read_regular(Path(f"/dev/fd/{reader}"), max_bytes)
        finally:
            os.close(reader)

    assert through_pipe(b"x" * 9000, 9000) == b"x" * 9000
    with pytest.raises(OSError, match="has more than 8,999 bytes"):
        through_pipe(b"x" * 9000, 8999)
    with pytest.raises(OSError, match="is empty, or was read before"):
        through_pipe(b"", 9)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        read_regular(tmp_path / "pipe", 9)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
@pytest.mark.parametrize("function", ["fsync", "open"])
def test_a_file_system_that_cannot_flush_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    def fail_for_folders(what: int | Path, *options: int) -> Any:
        if Path(f"/proc/self/fd/{what}" if isinstance(what, int) else what).is_dir():
            raise OSError(number, "no flush")
        return original(what, *options)

    original = getattr(os, function)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail_for_folders)
        write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


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

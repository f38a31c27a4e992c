from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mnist_ce.data.files import DownloadError, download_file, fetch

CONTENT = bytes(range(256)) * 40
CORRUPT = CONTENT[:-1] + b"?"
MD5, CORRUPT_MD5 = (hashlib.md5(c, usedforsecurity=False).hexdigest() for c in (CONTENT, CORRUPT))


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
        contents = {"short": CONTENT[:1000], "corrupt": CORRUPT, "stalled": CONTENT[:5000]}
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


def test_the_next_mirror_is_tried_and_stays_first(
    server: str, log_lines: Callable[[], list[str]]
) -> None:
    vices = ["silent", "stalled", "short", "corrupt", "missing", "good", "never-asked"]
    mirrors = deque(f"{server}/{vice}/" for vice in vices)
    for name in ("a.gz", "b.gz"):
        content = download_file(name, MD5, mirrors, max_bytes=20_000, stall_seconds=0.3)
        assert content == CONTENT
    assert Mirrors.requests == [*(f"/{vice}/a.gz" for vice in vices[:-1]), "/good/b.gz"]
    assert log_lines()[0] == f"downloading {server}/silent/a.gz"
    assert len(log_lines()) == 7


def test_the_error_has_every_mirrors_reason(server: str) -> None:
    mirrors = deque(f"{server}/{vice}/" for vice in ("short", "corrupt"))
    with pytest.raises(DownloadError) as caught:
        download_file("a.gz", MD5, mirrors, max_bytes=20_000, stall_seconds=1)
    assert str(caught.value).split("; ") == [
        f"{server}/short/a.gz: cut short: 1,000 of 10,240 bytes",
        f"{server}/corrupt/a.gz: has MD5 {CORRUPT_MD5}, expected {MD5}",
    ]

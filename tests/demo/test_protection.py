"""What a client that misuses the server costs the others: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from running import SEVEN, Demo

from mnist_ce.demo import corrections, security, server
from mnist_ce.demo.corrections import keep_correction, to_png
from mnist_ce.demo.server import make_app
from mnist_ce.reader.pixels import to_rgb
from mnist_ce.system.errors import RunError

MonkeyPatch = pytest.MonkeyPatch
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
GET = b"GET /style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def connect(demo: Demo) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", int(demo.url.rsplit(":", 1)[1])))
    return connection


def ask_health(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = b""
    while not answer.endswith(b'{"status":"ok"}'):
        answer += (received := connection.recv(4096))
        assert received


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_connection_that_has_waited_the_longest_makes_room(
    demo: Demo, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_CONNECTIONS", 10)
    with contextlib.ExitStack() as stack:
        between_requests = stack.enter_context(connect(demo))
        ask_health(between_requests)
        idle = [stack.enter_context(connect(demo)) for _ in range(40)]
        for _ in range(2):
            assert demo.post("/v1/predict", SEVEN).status_code == 200
            wait_until(lambda: len(demo.server.server_state.connections) <= 10)
            ask_health(between_requests)  # within uvicorn's 5 s for the next one
        with contextlib.suppress(ConnectionError):
            assert idle[0].recv(1) == b""
        idle[-1].sendall(GET)
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "beginning", [b"", HEAD, GET + HEAD, HEAD.replace(b"POST", b"GET") + b"99\r\n\r\n", GET * 4000]
)
def test_a_client_that_keeps_the_server_waiting_is_disconnected(
    demo: Demo, monkeypatch: MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(security, "MAX_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(security, "PIPELINE_SECONDS", 0)
    wait_until(lambda: not demo.server.server_state.connections)
    with connect(demo) as connection:  # which takes no answer
        connection.setblocking(False)
        connection.send(beginning)
        wait_until(lambda: len(demo.server.server_state.connections) > 0)
        for _ in range(5 * bool(beginning)):
            with contextlib.suppress(ConnectionError, BlockingIOError):
                connection.send(b"x")  # byte by byte
            time.sleep(0.1)
        wait_until(lambda: not demo.server.server_state.connections, 4)


def test_the_largest_bodies_that_do_not_come_make_room(
    demo: Demo, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_HELD_BYTES", 500_000)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(demo)) for _ in range(6)]
        for number, connection in enumerate(slow):
            connection.sendall(HEAD + b"999999\r\n\r\n" + bytes(80_000 + 10_000 * number))
        with ThreadPoolExecutor(3) as executor:
            answers = list(executor.map(lambda _: demo.post("/v1/predict", SEVEN), range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 408")
        slow[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            slow[0].recv(1)
    wait_until(lambda: not demo.server.config.app.state.bodies.num_bytes)  # type: ignore


def test_the_images_of_a_client_that_has_left_are_not_read_on(
    demo: Demo, monkeypatch: MonkeyPatch
) -> None:
    pool, calls = demo.service.pool, list[Future[Any]]()

    def take_long(*_: object) -> Future[Any]:
        calls.append(pool.submit(time.sleep, 1000))
        return calls[-1]

    monkeypatch.setattr(pool, "preprocess", take_long)
    with connect(demo) as connection:
        connection.sendall(HEAD + b"%d\r\n\r\n" % len(SEVEN) + SEVEN)
        wait_until(lambda: bool(calls))
        assert not calls[0].done()
    wait_until(calls[0].cancelled)


def test_wrong_tokens_are_slowed_and_reported_and_the_right_one_is_not(
    demo: Demo, monkeypatch: MonkeyPatch, log_warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(security, "WRONG_TOKEN_SECONDS", 0.5)
    app = make_app(demo.service, "0.0.0.0", "a long token", demo.folder / "corrections")

    async def ask(token: str) -> tuple[int, float]:
        started_at = time.monotonic()
        headers = {"Authorization": f"Bearer {token}", "Host": "10.0.0.1"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://10.0.0.1", headers=headers
        ) as client:
            answer = await client.get("/v1/models")
        return answer.status_code, time.monotonic() - started_at

    async def ask_all() -> list[tuple[int, float]]:
        return await asyncio.gather(*map(ask, ["a long token", "guess 1", "guess 2", "guess 3"]))

    right, *wrong = asyncio.run(ask_all())
    assert right[0] == 200
    assert all(status == 401 and seconds >= 0.5 for status, seconds in wrong)
    assert len([line for line in log_warnings() if "wrong token from 127.0.0.1" in line]) == 1


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError(28, "No space left")])
def test_an_error_within_is_one_line(
    demo: Demo, monkeypatch: MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(demo.service, "trained", fail)
    answer = demo.post("/v1/predict", SEVEN)
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]
    assert "content-security-policy" in answer.headers
    monkeypatch.setattr(server, "runs_now", fail)
    assert list(demo.get("/v1/runs").json()) == ["error"]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [len(record.getMessage().splitlines()) for record in errors] == [1, 1]
    assert not any(record.exc_info for record in errors)


def test_threads_return(demo: Demo) -> None:
    before = threading.active_count()

    async def ask() -> None:
        async with httpx.AsyncClient(
            verify=False, timeout=60, limits=httpx.Limits(max_connections=60)
        ) as client:
            paths = ["v1/models", "style.css", "v1/runs", "v1/predict?checkpoint=x"] * 15
            methods = ["GET", "GET", "GET", "POST"] * 15
            requests = [
                client.build_request(
                    method, f"{demo.url}/{path}", content=SEVEN[: method == "POST"]
                )
                for method, path in zip(methods, paths, strict=True)
            ]
            answers = await asyncio.gather(*(client.send(one, stream=True) for one in requests))
            for answer in answers:
                await answer.aclose()
            assert {answer.status_code for answer in answers} <= {200, 404, 429}

    asyncio.run(ask())
    assert threading.active_count() <= before + 5


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + (
        b"--" + boundary + b"--\r\n"
    )


FILE = b'Content-Disposition: form-data; name="a"; filename="seven.png"\r\n\r\n'
TEXT = b'Content-Disposition: form-data; name="t"\r\n\r\n'
FORMS: dict[str, tuple[bytes, int]] = {
    "one file": (form(FILE + SEVEN), 200),
    "a text before it": (form(TEXT + b"xn--" + b"a" * 1_000_000, FILE + SEVEN), 200),
    "64 files": (form(*[FILE + b"x"] * 64), 422),
    "65 files": (form(*[FILE + b"x"] * 65), 400),
    "many texts": (form(*[TEXT] * 100_000), 400),
    "no file": (form(TEXT), 400),
    "no end": (form(FILE + SEVEN)[:-6], 400),
    "no head": (form(b"x"), 400),
    "an endless head": (form(b"x" * 5_000_000 + b"\r\n\r\n"), 400),
    "another boundary": (form(FILE + SEVEN, boundary=b"y"), 400),
    "nothing but ends": (b"--x" * 1_000_000, 400),
}


@pytest.mark.parametrize("case", FORMS)
@pytest.mark.parametrize("charset", ["", "; charset=punycode"])
def test_forms_are_read_at_once_or_refused(demo: Demo, case: str, charset: str) -> None:
    content, status = FORMS[case]
    started_at = time.monotonic()
    kind = f"multipart/form-data; boundary=x{charset}"
    answer = demo.post("/v1/predict", content, **{"Content-Type": kind})
    assert (answer.status_code, time.monotonic() - started_at < 5) == (status, True), answer.text


def with_metadata(image: Image.Image, **options: Any) -> bytes:
    exif, text, buffer = image.getexif(), PngInfo(), io.BytesIO()
    exif[ExifTags.Base.Make] = "SECRET"
    text.add_text("Comment", "SECRET")
    image.save(buffer, "PNG", exif=exif, pnginfo=text, icc_profile=b"SECRET" * 50, **options)
    return buffer.getvalue()


KEPT = {
    "1": Image.new("1", (30, 40), 1),
    "L": Image.new("L", (30, 40), 200),
    "LA": Image.new("LA", (30, 40), (0, 200)),
    "I;16": Image.fromarray(np.full((40, 30), 51_400, np.uint16)),
    "P": Image.new("RGB", (30, 40), (200, 200, 200)).quantize(4),
    "RGB": Image.new("RGB", (30, 40), (200, 200, 200)),
    "RGBA": Image.new("RGBA", (30, 40), (0, 0, 0, 55)),
}


@pytest.mark.parametrize("mode", KEPT)
def test_a_correction_keeps_the_pixels_and_nothing_else(mode: str) -> None:
    image = KEPT[mode]
    content = to_png(with_metadata(image))
    kept = Image.open(io.BytesIO(content))
    assert kept.info == {}
    assert b"SECRET" not in content
    assert np.array_equal(np.asarray(to_rgb(kept)), np.asarray(to_rgb(image)))


def test_no_more_corrections_than_allowed_at_once(demo: Demo, monkeypatch: MonkeyPatch) -> None:
    folder = demo.folder / "corrections"
    monkeypatch.setattr(corrections, "MAX_CORRECTIONS", len(list(folder.glob("*"))) + 3)
    with ThreadPoolExecutor(8) as executor:
        path = "/v1/corrections?label=7"
        answers = list(executor.map(lambda _: demo.post(path, SEVEN), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [422] * 5
    assert len(list(folder.iterdir())) == corrections.MAX_CORRECTIONS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dangling", "is not a folder"),
        ("file", "is not a folder"),
        ("file/below", "Not a directory"),
    ],
)
def test_a_folder_of_corrections_that_is_none_is_named(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"{name}.*{reason}"):
        keep_correction(tmp_path / name, SEVEN, 7)

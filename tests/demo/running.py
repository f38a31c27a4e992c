"""A server that runs in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi")
import uvicorn
from fastapi import FastAPI

from mnist_ce.demo.inference import InferenceService
from mnist_ce.demo.server import make_server

CLIENT = httpx.Client(verify=False, timeout=60)  # one, since each takes 50 ms to begin


@dataclass(frozen=True)
class Demo:
    """A running server."""

    url: str
    folder: Path  # with `runs`, one of which is `small`, and `corrections`
    service: InferenceService
    server: uvicorn.Server

    def post(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        return CLIENT.post(f"{self.url}{path}", content=content, headers=headers)

    def get(self, path: str) -> httpx.Response:
        return CLIENT.get(f"{self.url}{path}")


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application in a thread; yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drawing(*lines: list[tuple[int, int]]) -> bytes:
    page = Image.new("L", (280, 280), 255)
    for line in lines:
        ImageDraw.Draw(page).line(line, fill=0, width=22, joint="curve")
    return png(page)


SEVEN = drawing([(70, 60), (210, 60), (120, 230)])
ONE_AND_SEVEN = drawing([(50, 70), (50, 210)], [(130, 70), (230, 70), (170, 210)])

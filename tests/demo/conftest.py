from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from running import Demo  # noqa: E402

from mnist_ce.demo.inference import InferenceService  # noqa: E402
from mnist_ce.demo.server import make_app  # noqa: E402
from mnist_ce.training.callbacks import TrainResult  # noqa: E402


@pytest.fixture(scope="session")
def demo(
    tmp_path_factory: pytest.TempPathFactory, train_small_in: Callable[..., TrainResult]
) -> Iterator[Demo]:
    """A server in this process, with one run beside the shipped weights."""
    folder = tmp_path_factory.mktemp("demo")
    train_small_in(folder / "runs", "small")
    service = InferenceService(folder / "runs", 1)
    app = make_app(service, "127.0.0.1", None, folder / "corrections")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Demo(f"http://127.0.0.1:{listener.getsockname()[1]}", folder, service)
    finally:
        server.should_exit = True
        thread.join()
        service.close()

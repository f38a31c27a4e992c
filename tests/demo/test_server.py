from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from running import CLIENT, ONE_AND_SEVEN, SEVEN, Demo, png

from mnist_ce import load_model, predict
from mnist_ce.demo import security
from mnist_ce.demo.server import STATIC, make_app
from mnist_ce.explain.image import explain_image
from mnist_ce.reader.image_io import open_image
from mnist_ce.runs.load_model import TrainedModel

MonkeyPatch = pytest.MonkeyPatch


HOSTILE = {
    "text": (b"hello", 422, "not an image"),
    "truncated": (png(Image.effect_noise((60, 60), 50))[:900], 422, "damaged"),
    "bomb": (png(Image.new("1", (12_000, 12_000))), 413, "pixels"),
    "too narrow": (png(Image.new("L", (51, 1))), 422, "too narrow"),
    "nothing": (b"", 400, "empty"),
}


@pytest.mark.parametrize("options", [{}, {"multi": True, "top_k": 2}, {"min_confidence": 1.0}])
def test_the_records_are_those_of_predict(demo: Demo, options: dict[str, Any]) -> None:
    def comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        numbers = ("path", "probability", "score", "top_k")
        return [{key: record[key] for key in {*record} - {*numbers}} for record in records]

    records = [predict(image, **options) for image in (SEVEN, ONE_AND_SEVEN)]
    rows = [record.to_dict() for part in records for record in part]
    expected = json.loads(json.dumps(rows))  # with lists in place of tuples
    query = str(httpx.QueryParams(options))
    images = {"seven.png": SEVEN, "text.png": b"hello", "../two.png": ONE_AND_SEVEN}
    files = [("images", image) for image in images.items()]
    form = CLIENT.post(f"{demo.url}/v1/predict?{query}", files=files).json()
    assert [r["path"] for r in form if r["index"] == 0] == [*images]
    assert form.pop(1)["status"] == "error"  # which costs the others nothing
    bodies = [demo.post(f"/v1/predict?{query}", body).json() for body in (SEVEN, ONE_AND_SEVEN)]
    answer = demo.post(f"/v1/predict?{query}&format=text", ONE_AND_SEVEN)
    assert answer.text == f"{records[1].text}\n"
    assert answer.headers["content-type"].startswith("text/plain")
    (inspected,) = demo.post("/v1/inspect", ONE_AND_SEVEN).json()
    assert inspected["lines"] == predict(ONE_AND_SEVEN).lines
    for found in (form, [record for body in bodies for record in body]):
        assert comparable(found) == comparable(expected)
        for record, own in zip(found, expected, strict=True):
            assert record["probability"] == pytest.approx(own["probability"], rel=1e-4)
            assert len(record["top_k"]) == options.get("top_k", 3)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_image_gets_its_reason(demo: Demo, case: str) -> None:
    content, status, reason = HOSTILE[case]
    before = list(demo.folder.rglob("*"))
    for path in ("/v1/predict", "/v1/inspect", "/v1/corrections?label=3"):
        answer = demo.post(path, content)
        assert (answer.status_code, reason in answer.text) == (status, True), answer.text
        assert "\\n" not in answer.text
    assert list(demo.folder.rglob("*")) == before
    assert demo.post("/v1/predict", SEVEN).status_code == 200


def test_each_page_has_its_records(demo: Demo) -> None:
    buffer, page = io.BytesIO(), Image.open(io.BytesIO(SEVEN))
    page.save(buffer, "TIFF", save_all=True, append_images=[Image.open(io.BytesIO(ONE_AND_SEVEN))])
    records = demo.post("/v1/predict?multi=true", buffer.getvalue()).json()
    found = [(record["page"], record["index"], record["class_name"]) for record in records]
    assert found == [(1, 0, "7"), (2, 0, "1"), (2, 1, "7")]
    (inspected,) = demo.post("/v1/inspect?multi=true", buffer.getvalue()).json()
    assert [record["page"] for record in inspected["records"]] == [1]
    assert "This is page 1 of the image." in inspected["explanation"]["notes"]


def test_a_network_that_loads_slowly_keeps_nobody_waiting(
    demo: Demo, monkeypatch: MonkeyPatch
) -> None:
    is_loading, may_load, trained = threading.Event(), threading.Event(), demo.service.trained

    def load_slowly(name: str) -> TrainedModel:
        is_loading.set()
        may_load.wait(20)
        return trained(name)

    monkeypatch.setattr(demo.service, "trained", load_slowly)
    with ThreadPoolExecutor() as executor:
        slow = executor.submit(demo.post, "/v1/predict", SEVEN)
        assert is_loading.wait(30)
        assert demo.get("/healthz").status_code == 200
        assert not slow.done()
        may_load.set()
        assert slow.result().status_code == 200


def test_inspect_shows_the_loss_of_explain(demo: Demo) -> None:
    expected = explain_image(SEVEN, "1", checkpoint=load_model("world")).to_dict()
    path = "/v1/inspect?checkpoint=world&checkpoint=small&target=1"
    first, second = demo.post(path, SEVEN).json()
    assert first["explanation"]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert first["explanation"]["pixels"] == expected["pixels"]
    assert [len(layer) for layer in first["activations"]] == [520, 320, 240, 120, 10]
    logits = first["explanation"]["rows"][0]["logits"]
    assert first["activations"][-1] == pytest.approx(logits, abs=2e-3)
    assert [len(layer) for layer in second["activations"]] == [24, 16, 10]
    assert len(first["stages"]) > 1
    assert all(url.startswith("data:image/png;base64,") for url in first["stages"].values())


def test_steps_on_one_image_are_those_of_sgd_and_change_no_network(demo: Demo) -> None:
    path = "/v1/inspect?checkpoint=small&target=3&learning_rate=0.05"
    (before,) = demo.post(path, SEVEN).json()
    (after,) = demo.post(f"{path}&steps=3", SEVEN).json()
    trained = load_model(demo.folder / "runs" / "small")
    pixels = torch.tensor(before["explanation"]["pixels"])[None] / 255
    optimizer, losses = torch.optim.SGD(trained.model.parameters(), lr=0.05), []
    for _ in range(4):
        loss = F.cross_entropy(trained.model(pixels), torch.tensor([3]))
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert before["explanation"]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert after["step_losses"] == pytest.approx(losses[:3], rel=1e-5)
    assert after["explanation"]["loss"] == pytest.approx(losses[3], rel=1e-5)
    assert after["records"] == before["records"]
    (again,) = demo.post(path, SEVEN).json()
    assert again == before | {"records": again["records"]}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/inspect?steps=101", 422),
        ("/v1/inspect?steps=1&learning_rate=inf", 422),
        ("/v1/predict?checkpoint=../small", 404),
        ("/v1/predict?checkpoint=/etc/passwd", 404),
        ("/v1/predict?top_k=0", 422),
        ("/v1/predict?min_confidence=2", 422),
        ("/v1/inspect?target=11", 422),
        ("/v1/corrections?label=11", 422),
        ("/v1/corrections?label=../7", 422),
        ("/v1/nothing", 404),
    ],
)
def test_wrong_requests_get_one_reason(demo: Demo, path: str, status: int) -> None:
    answer = demo.post(path, SEVEN)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("path", ["../server.py", "%2e%2e/server.py", "..%2fserver.py"])
def test_no_path_leads_out_of_the_page(demo: Demo, path: str) -> None:
    assert (STATIC / "../server.py").is_file()
    with socket.create_connection(("127.0.0.1", int(demo.url.rsplit(":", 1)[1]))) as connection:
        request = f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        assert connection.makefile("rb").readline().split()[1] == b"404"


def test_only_the_own_page_may_ask(demo: Demo) -> None:
    host = demo.url.removeprefix("http://")
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": f"evil.example:{host.split(':')[1]}"}, 421),
        ({"Host": "["}, 421),
        ({"Host": ""}, 421),
        ({"Host": "evil.example\\@127.0.0.1"}, 421),
        ({"Host": "evil.example@127.0.0.1"}, 421),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://a]b"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}, 200),
    ):
        answer = demo.post("/v1/predict", SEVEN, **headers)
        assert answer.status_code == status, headers
        assert "access-control-allow-origin" not in answer.headers
        assert "script-src 'self';" in answer.headers["content-security-policy"]


def test_too_much_is_refused_in_time(demo: Demo, monkeypatch: MonkeyPatch) -> None:
    address = ("127.0.0.1", int(demo.url.rsplit(":", 1)[1]))
    head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
    with socket.create_connection(address) as large:
        large.sendall(head + b"99999999\r\n\r\n")
        assert large.recv(100).startswith(b"HTTP/1.1 413")
    monkeypatch.setattr(security, "MAX_BODY_BYTES", 1000)
    parts = iter([b"x" * 900, b"x" * 900])  # without a Content-Length
    assert CLIENT.post(f"{demo.url}/v1/predict", content=parts).status_code == 413
    monkeypatch.setattr(security, "MAX_BODY_SECONDS", 0.1)
    with socket.create_connection(address) as slow:
        slow.sendall(head + b"9\r\n\r\nx")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_the_token_is_needed_and_becomes_a_cookie(demo: Demo, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(security, "WRONG_TOKEN_SECONDS", 0.01)
    app = make_app(demo.service, "0.0.0.0", "a long token", demo.folder / "corrections")

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1") as client:
            for value in ("", "Bearer", "Bearer a long tokem", "Bearer ü", "a long token"):
                headers = [(b"authorization", value.encode())]
                answer = await client.get("/v1/models", headers=headers)
                assert answer.status_code == 401, value
            assert (await client.get("/")).status_code == 200
            headers = [(b"authorization", b"Bearer a long token")]
            assert (await client.post("/v1/session", headers=headers)).status_code == 204
            assert (await client.get("/v1/models")).status_code == 200  # by the cookie

    asyncio.run(ask())


def test_a_correction_is_an_image_with_its_label(demo: Demo) -> None:
    before = set(demo.folder.rglob("*.png"))
    answer = demo.post("/v1/corrections?label=7", SEVEN).json()
    (path,) = set(demo.folder.rglob("*.png")) - before
    assert path == demo.folder / "corrections" / answer["file"]
    assert path.name.startswith("7_")
    assert open_image(path).tobytes() == open_image(SEVEN).convert("RGB").tobytes()


def test_the_page_and_the_interface_are_described(demo: Demo) -> None:
    assert demo.get("/healthz").json() == {"status": "ok"}
    models = demo.get("/v1/models").json()
    assert [model["name"] for model in models] == ["world", "mnist", "small"]
    paths = demo.get("/openapi.json").json()["paths"]
    assert {"/healthz", "/v1/models", "/v1/predict", "/v1/inspect"} <= set(paths)
    for page in ("/", "/docs"):
        text = CLIENT.get(f"{demo.url}{page}", follow_redirects=True).text
        assert "://" not in text.replace("http://www.w3.org", "")  # nothing from elsewhere
        assert "<script>" not in text


def test_a_run_is_shown(demo: Demo) -> None:
    answer = demo.get("/v1/runs?run=small&run=gone").json()
    (run,), (curve,) = answer["runs"], answer["curves"]
    assert (run["name"], run["state"], answer["shown"]) == ("small", "finished", ["small"])
    assert curve["epochs"]
    assert answer["snapshot"]["weights"]


def test_missing_packages_are_named(
    refused: Callable[..., tuple[int, str]], monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, error = refused("demo")
    assert code == 2
    assert "pip install 'mnist-ce[demo]'" in error


def children_of(process: int) -> list[int]:
    """Return the ids of the processes that a process has started (Linux)."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_under_load_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "mnist_ce", "demo", "--no-browser", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TMPDIR": str(tmp_path)}
    with contextlib.ExitStack() as stack:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = stack.enter_context(
            subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
        )
        stack.callback(process.kill)  # whatever failed: leaving the block waits for it
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().decode().strip()
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")))
        head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n"
        for index in range(40 if number == signal.SIGTERM else 0):  # damaged requests
            with socket.create_connection(address, timeout=30) as connection:
                connection.sendall((head + SEVEN)[index * 7 :][: 50 + 10 * index])
                connection.shutdown(socket.SHUT_WR)
                assert not connection.recv(100).startswith(b"HTTP/1.1 5")
        assert CLIENT.post(f"{url}v1/predict", content=SEVEN).json()[0]["label"] == 7
        page = png(Image.effect_noise((1500, 1500), 80))  # takes long to read
        busy = (
            f"POST /v1/predict?multi=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(page)}"
        )
        for content in [b"GET /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"] * 3 + [
            busy.encode() + b"\r\n\r\n" + page
        ] * 8:
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            connection.sendall(content)
        time.sleep(0.5)
        children = children_of(process.pid)
        assert children
        process.send_signal(number)
        started_at = time.monotonic()
        assert process.wait(timeout=20) == (-9 if number == signal.SIGKILL else 128 + number)
        assert time.monotonic() - started_at < 5  # 2 s on an idle machine
        assert process.stderr.read() == b""  # ends when no process has it any more
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not list(tmp_path.iterdir())

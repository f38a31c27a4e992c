"""The server behind a proxy, for web pages of other origins, and for clients of other kinds."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from running import CLIENT, SEVEN, Demo, serving

from mnist_ce.demo.server import make_app

NAME, PAGE = "digits.example.org", "http://localhost:3000"
TOKEN = {"Authorization": "Bearer a long token"}


@contextlib.contextmanager
def proxy(target: str, host: str | None) -> Iterator[str]:
    """Forward requests as nginx does, with the client's `Host` kept, or its own name for it."""

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {**self.headers, "Host": host or self.headers["Host"], "Connection": "close"}
            options: Any = {"content": content, "headers": headers, "timeout": 30}
            answer = CLIENT.request(self.command, target + self.path, **options)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_HEAD = forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def open_url(demo: Demo) -> Iterator[str]:
    folder = demo.folder / "corrections"
    app = make_app(demo.service, "127.0.0.1", "a long token", folder, [NAME], [PAGE])
    with serving(app) as url:
        yield url


@pytest.mark.parametrize(("host", "port"), [(None, ""), ("127.0.0.1:8000", ":8443")])
def test_a_page_behind_a_proxy_may_ask(open_url: str, host: str | None, port: str) -> None:
    with proxy(open_url, host) as url:

        def post(origin: str, name: str = NAME + port) -> int:
            headers = {"Host": name, "Origin": origin, "Sec-Fetch-Site": "same-origin", **TOKEN}
            return CLIENT.post(f"{url}/v1/predict", content=SEVEN, headers=headers).status_code

        assert CLIENT.get(url, headers={"Host": NAME + port}).status_code == 200
        assert post(f"https://{NAME}{port}") == 200
        assert post("https://evil.example") == 403
        assert post(f"https://{NAME}.evil.example") == 403
        assert post(f"https://{NAME}", "evil.example") == (421 if host is None else 200)


def test_a_page_of_an_allowed_origin_may_ask_and_no_other(open_url: str) -> None:
    wanted = {"Access-Control-Request-Method": "POST"}
    wanted["Access-Control-Request-Headers"] = "authorization,content-type"
    for origin, status in ((PAGE, 200), ("http://localhost:3001", 403), ("null", 403)):
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        preflight = CLIENT.options(f"{open_url}/v1/predict", headers=headers | wanted)
        assert (preflight.status_code == 200) == (status == 200)
        answer = CLIENT.post(f"{open_url}/v1/predict", content=SEVEN, headers=headers | TOKEN)
        assert answer.status_code == status
        for given in (preflight, answer):
            allowed = given.headers.get("access-control-allow-origin")
            assert allowed == (PAGE if status == 200 else None)
    refused = CLIENT.post(f"{open_url}/v1/predict", content=b"", headers={"Origin": PAGE})
    assert refused.status_code == 401  # which the page may read
    assert refused.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/style.css", "/openapi.json"])
def test_head_is_answered_as_get_is_without_the_body(demo: Demo, path: str) -> None:
    head, get = CLIENT.head(f"{demo.url}{path}"), demo.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_an_image_in_json(demo: Demo, prefix: str) -> None:
    image = prefix + base64.b64encode(SEVEN).decode()
    for path in ("/v1/predict", "/v1/inspect", "/v1/corrections?label=7"):
        answer = CLIENT.post(f"{demo.url}{path}", json={"image": image})
        assert answer.status_code in (200, 201)
    (record,) = CLIENT.post(f"{demo.url}/v1/predict", json={"image": image}).json()
    assert (record["label"], record["path"]) == (7, "-")
    for wrong in ({}, {"image": 7}, [image], "text"):
        answer = CLIENT.post(f"{demo.url}/v1/predict", json=wrong)
        assert (answer.status_code, "base64" in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/predict?topk=2&multi=true", "there is no option topk; did you mean top_k?"),
        ("/v1/predict?multy=1", "there is no option multy; did you mean multi?"),
        ("/v1/corrections?label=7&truth=7", "there is no option truth"),
    ],
)
def test_an_unknown_option_is_refused(demo: Demo, path: str, near: str) -> None:
    answer = demo.post(path, SEVEN)
    assert (answer.status_code, answer.json()) == (422, {"error": near})


def test_the_example_has_the_fields_of_an_answer(demo: Demo) -> None:
    paths = demo.get("/openapi.json").json()["paths"]
    described = paths["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]
    (example,), (record,) = described["example"], demo.post("/v1/predict", SEVEN).json()
    assert {key: type(value) for key, value in example.items()} == {
        key: type(value) for key, value in record.items()
    }
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    assert json.loads(text.partition("```json\n")[2].partition("```")[0]) == described["example"]


@pytest.mark.parametrize(
    "words", ["--allow-host https://a.org", "--allow-origin localhost:3000", "--allow-origin *"]
)
def test_wrong_names_are_refused(words: str, refused: Callable[..., tuple[int, str]]) -> None:
    code, error = refused("demo", *words.split())
    assert (code, "--allow-origin https:// and a name" in error) == (2, True)

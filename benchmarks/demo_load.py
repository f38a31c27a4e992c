"""Load on `mnist-ce demo`: a client alone and beside a hostile one, with memory and threads.

    python -m benchmarks.demo_load --seconds 120

The client posts 100×100 PNGs of drawn digits over a few connections and waits for each answer. The
hostile one, a process of its own, misuses the server in every way of `ATTACKS` at the same time.
Periods with and without it take turns. All share the cores with the server. (Linux)
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import multiprocessing
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from mnist_ce.data.synthetic import generate

NUM_CONNECTIONS, NUM_ROUNDS = 4, 3
REST_SECONDS = 15.0  # after which threads that do nothing have ended
TOKEN = "the token of this benchmark"
COMMAND = [sys.executable, "-m", "mnist_ce"]
Address = tuple[str, int]


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_images(count: int) -> list[bytes]:
    """Return PNGs of 100×100 pixels, dark digits on bright paper."""
    contents = []
    for pixels in generate(count, seed=7).images.numpy():
        page = Image.new("L", (100, 100), 235)
        page.paste(Image.fromarray(255 - pixels).resize((70, 70)), (15, 15))
        contents.append(encoded(page))
    return contents


def post(address: Address, contents: list[bytes], until: float, results: list[float]) -> None:
    """Post images over one connection and append the seconds of each; raise unless it is 200."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    while time.monotonic() < until:
        started_at = time.perf_counter()
        connection.request("POST", "/v1/predict", random.choice(contents), headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}")
        results.append(time.perf_counter() - started_at)


def request(path: str, body: bytes = b"", *fields: str, token: str = TOKEN) -> bytes:
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: 127.0.0.1", *fields]
    lines += [f"Authorization: Bearer {token}", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


FORM = "Content-Type: multipart/form-data; boundary=x; charset="
TEXT = b'--x\r\nContent-Disposition: form-data; name="t"\r\n\r\n%s\r\n--x--\r\n'
DIGIT = make_images(1)[0]
NOISE = encoded(Image.effect_noise((1500, 1500), 80))  # takes long to read
LARGE = encoded(Image.new("RGB", (7000, 7000), "white"), "WEBP", method=0, quality=1)
BOMB = encoded(Image.new("1", (12_000, 12_000)))
BEGUN = request("/v1/predict", DIGIT)[:-500]
ATTACKS: dict[str, tuple[list[bytes], int, float]] = {
    # Each: what is sent, on how many connections at once, and for how long they are held then.
    "connections without a request": ([b""], 300, 1.0),
    "unfinished heads": ([BEGUN[:60]], 50, 2.0),
    "unfinished bodies": ([BEGUN], 50, 2.0),
    "answers that are not taken": ([request("/style.css") * 2000], 20, 2.0),
    "damaged requests": ([], 1, 0.0),
    "forms": (
        [
            request("/v1/predict", TEXT % (b"a" * 1_000_000), FORM + "punycode"),
            request("/v1/predict", b"--x\r\n" + b"a" * 8_000_000, FORM + "utf-7"),
            request("/v1/predict", b"--x\r\n\r\n\r\n" * 500_000, FORM + "utf-8"),
        ],
        2,
        0.2,
    ),
    "runs": ([request("/v1/runs")], 30, 1.0),
    "wrong tokens": ([request("/v1/models", token="guess")], 20, 1.0),
    "wrong hosts and paths": (
        [request("/v1/predict", DIGIT, "Origin: http://["), request("/v1/predict?checkpoint=../x")],
        10,
        0.2,
    ),
    "images with too many pixels": ([request("/v1/predict", BOMB)], 2, 0.2),
    "images that take long": ([request("/v1/predict?multi=1", NOISE)], 1, 3.0),
    "large corrections": ([request("/v1/corrections?label=1", LARGE)], 1, 3.0),
}


def attack(address: Address, name: str, until: float) -> Counter[str]:
    """Misuse the server in one way until a time; return the answers by status."""
    contents, num_connections, seconds = ATTACKS[name]
    rng, statuses = random.Random(0), Counter[str]()
    while time.monotonic() < until:
        with contextlib.ExitStack() as stack:
            opened = []
            for _ in range(num_connections):
                if time.monotonic() > until:
                    break
                content = rng.choice(contents) if contents else damaged(rng)
                with contextlib.suppress(OSError):
                    connection = socket.create_connection(address, timeout=0.2)
                    opened.append(stack.enter_context(connection))
                    connection.settimeout(0.1)
                    connection.sendall(content)
            time.sleep(seconds)
            answered = [] if "not taken" in name else select.select(opened, [], [], seconds)[0]
            for connection in answered:
                with contextlib.suppress(OSError):
                    statuses[connection.recv(4096)[9:12].decode("latin-1") or "closed"] += 1
        time.sleep(0.05)
    return statuses


def damaged(rng: random.Random) -> bytes:
    """Return a request that is cut off, with some bytes changed."""
    whole = request("/v1/predict", DIGIT, *([FORM + "utf-8"] if rng.random() < 0.5 else []))
    content = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.7 else whole)
    for _ in range(5):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def attack_all(address: Address, seconds: float) -> dict[str, Counter[str]]:
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(len(ATTACKS)) as pool:
        jobs = {name: pool.submit(attack, address, name, until) for name in ATTACKS}
        return {name: job.result() for name, job in jobs.items()}


def state_of(process: int) -> tuple[float, int, int]:
    """Return the memory of a process and its children, in MB, its threads, and its open files."""
    tasks = Path(f"/proc/{process}/task")
    children = [int(i) for file in tasks.glob("*/children") for i in file.read_text().split()]
    pages = [int(Path(f"/proc/{i}/statm").read_text().split()[1]) for i in (process, *children)]
    memory = sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return memory, len(list(tasks.iterdir())), len(list(Path(f"/proc/{process}/fd").iterdir()))


@contextlib.contextmanager
def running_server(folder: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    command = [*COMMAND, "demo", "--no-browser", "--port", "0", "--corrections", folder]
    environment = {**os.environ, "MNIST_CE_DEMO_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
        try:
            yield server, ("127.0.0.1", port)
        finally:  # whatever failed: leaving the block waits for the process
            server.terminate()


def measure(address: Address, contents: list[bytes], seconds: float) -> list[float]:
    """Return the seconds that each request took."""
    results, until = list[float](), time.monotonic() + seconds
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        jobs = [
            pool.submit(post, address, contents, until, results) for _ in range(NUM_CONNECTIONS)
        ]
        for job in jobs:
            job.result()  # raises where a request failed
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to post images")
    seconds = parser.parse_args().seconds / NUM_ROUNDS / 2
    contents, spawn = make_images(800), multiprocessing.get_context("spawn")
    latencies: dict[str, list[float]] = {"alone": [], "beside a hostile client": []}
    answers: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(folder) as (server, address),
        ProcessPoolExecutor(1, spawn) as process,
    ):
        process.submit(os.getpid).result()  # it has started
        measure(address, contents, 2)
        for kind in ("runs", "forms", "images that take long", "large corrections"):
            attack(address, kind, time.monotonic() + 1)  # loads what is loaded once
        time.sleep(REST_SECONDS)
        before = state_of(server.pid)
        for _ in range(NUM_ROUNDS):
            latencies["alone"] += measure(address, contents, seconds)
            hostile = process.submit(attack_all, address, seconds + 1)
            time.sleep(1)
            latencies["beside a hostile client"] += measure(address, contents, seconds)
            answers += sum(hostile.result().values(), Counter[str]())
        time.sleep(REST_SECONDS)
        after = state_of(server.pid)
        started_at = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=10)
        print("| client | requests | images/s | median | p99 |\n| --- | --: | --: | --: | --: |")
        for name, times in latencies.items():
            p99 = statistics.quantiles(times, n=100)[98]
            per_second = len(times) / seconds / NUM_ROUNDS
            cells = f"{len(times)} | {per_second:.0f} | {statistics.median(times):.4f} s"
            print(f"| {name} | {cells} | {p99:.4f} s |")
        for name, state in (("before", before), ("after", after)):
            print(f"{name}: {state[0]:.0f} MB, {state[1]} threads, {state[2]} open files")
        print(f"answers to the hostile client: {dict(sorted(answers.items()))}")
        print(f"SIGTERM: exit code {code} after {time.perf_counter() - started_at:.2f} s")


if __name__ == "__main__":
    main()

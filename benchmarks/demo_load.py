"""Load on `mnist-ce demo`: throughput against `predict` on the same images, latency, memory.

    python -m benchmarks.demo_load --seconds 60

One thread per connection posts 100×100 PNGs of drawn digits, then a connection sends malformed and
cut-off requests. The threads share the cores with the server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from mnist_ce.data.synthetic import generate

CONNECTIONS = 16
COMMAND = [sys.executable, "-m", "mnist_ce"]


def make_images(count: int) -> list[bytes]:
    """Return PNGs of 100×100 pixels, dark digits on bright paper."""
    contents = []
    for pixels in generate(count, seed=7).images.numpy():
        buffer = io.BytesIO()
        page = Image.new("L", (100, 100), 235)
        page.paste(Image.fromarray(255 - pixels).resize((70, 70)), (15, 15))
        page.save(buffer, "PNG")
        contents.append(buffer.getvalue())
    return contents


def predict_rate(contents: list[bytes], folder: Path) -> float:
    """Return images per second of `predict` on a folder, without the start of the program."""
    seconds = []
    for number in (200, len(contents)):
        part = folder / str(number)
        part.mkdir()
        for index, content in enumerate(contents[:number]):
            (part / f"{index:05d}.png").write_bytes(content)
        started_at = time.perf_counter()
        subprocess.run([*COMMAND, "predict", part, "--jsonl"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started_at)
    return (len(contents) - 200) / (seconds[1] - seconds[0])


def post(
    address: tuple[str, int], contents: list[bytes], until: float, results: list[float]
) -> None:
    """Post images over one connection and append the seconds of each; raise unless it is 200."""
    connection = http.client.HTTPConnection(*address)
    while time.perf_counter() < until:
        started_at = time.perf_counter()
        connection.request("POST", "/v1/predict", random.choice(contents))
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}")
        results.append(time.perf_counter() - started_at)


def malformed(address: tuple[str, int], content: bytes) -> Counter[str]:
    """Send 1,000 requests that are damaged or cut off, and count the answers by status."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % len(content)
    form = b"Content-Type: multipart/form-data; boundary=x\r\n"
    rng, statuses = random.Random(0), Counter[str]()
    for number in range(1000):
        whole = head + (form if number % 2 else b"") + b"\r\n" + content
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if number % 3 else whole)
        for _ in range(5):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(damaged)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                statuses[connection.recv(4096)[9:12].decode() or "closed"] += 1
    return statuses


def memory_mb(process: int) -> float:
    """Return the resident memory of a process and its children, in MB (Linux)."""
    found = subprocess.run(
        ["ps", "-o", "rss=", "--pid", str(process), "--ppid", str(process)],
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(map(int, found.stdout.split())) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to post images")
    seconds = parser.parse_args().seconds
    contents, results = make_images(800), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        rate = predict_rate(contents, Path(folder))
    server = subprocess.Popen(
        [*COMMAND, "demo", "--no-browser", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    port = int(server.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
    address = ("127.0.0.1", port)
    post(address, contents, time.perf_counter() + 2, [])
    before, until = memory_mb(server.pid), time.perf_counter() + seconds
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        jobs = [pool.submit(post, address, contents, until, results) for _ in range(CONNECTIONS)]
        for job in jobs:
            job.result()  # raises where a request failed
    after, num_images = memory_mb(server.pid), len(results)
    results.sort()
    print(f"predict on a folder: {rate:.0f} images/s; {os.cpu_count()} cores")
    served = num_images / seconds
    print(f"demo: {served:.0f} images/s, {served / rate:.2f} of that; {num_images} requests")
    print(f"median {results[num_images // 2]:.4f} s, p99 {results[int(0.99 * num_images)]:.4f} s")
    print(f"memory {before:.0f} MB before, {after:.0f} MB after")
    print(f"1,000 malformed requests: {dict(malformed(address, contents[0]))}")
    post(address, contents, time.perf_counter() + 0.1, [])
    started_at = time.perf_counter()
    server.send_signal(signal.SIGTERM)
    code = server.wait(timeout=10)
    print(f"SIGTERM: exit code {code} after {time.perf_counter() - started_at:.2f} s")


if __name__ == "__main__":
    main()

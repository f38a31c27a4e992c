"""`mnist-ce demo`."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

from typer import Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, warn
from mnist_ce.system.errors import UsageError, require
from mnist_ce.system.text import one_line

PACKAGES = ("fastapi", "uvicorn")  # of the extra demo
TOKEN_VARIABLE = "MNIST_CE_DEMO_TOKEN"
MIN_TOKEN_LENGTH = 12


def demo(
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, Option(help=f"File with what requests must present (or {TOKEN_VARIABLE}).")
    ] = None,
    allow_host: Annotated[
        list[str] | None, Option(help="Name that a proxy with TLS has for this server.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, Option(help="Other page that may ask (CORS): http://localhost:3000.")
    ] = None,
    no_browser: Annotated[bool, Option("--no-browser", help="Do not open the browser.")] = False,
    corrections: Annotated[str, Option(help="Folder for labelled drawings.")] = "corrections",
    model: options.Model = None,
    output: options.Output = "checkpoints",
    threads: options.Threads = 0,
) -> None:
    """Serve a page to draw digits on, and predictions over HTTP.

    The page shows what the network sees, predicts and why, and runs as they are
    trained. Ctrl-C ends it. (Packages: pip install 'mnist-ce[demo]')

    Examples:
      mnist-ce demo
      mnist-ce demo --no-browser --port 9000 --output my-runs
    """
    require(*PACKAGES, extra="demo")
    token = token_file.read_text("latin-1").strip() if token_file else os.getenv(TOKEN_VARIABLE)
    if token is not None and (len(token) < MIN_TOKEN_LENGTH or not token.isascii()):
        source = token_file or TOKEN_VARIABLE
        raise UsageError(f"{source}: a token has at least {MIN_TOKEN_LENGTH} ASCII characters")
    if host not in ("127.0.0.1", "::1", "localhost"):
        if token is None:
            raise UsageError(f"--host {host}: others can reach the server: it needs --token-file")
        warn(f"others can reach this server on {host}; requests and token are not encrypted")
    hosts = [name.lower() for name in allow_host or ()]
    origins = [url.rstrip("/").lower() for url in allow_origin or ()]
    for value in (*(f"https://{name}" for name in hosts), *origins):
        if not re.fullmatch(r"https?://[a-z0-9._:\[\]-]+", value):
            raise UsageError(
                f"{value}: --allow-host takes a name, --allow-origin https:// and a name"
            )
    if hosts and token is None:
        warn("whoever reaches the proxy can use this server, unless it has a --token-file")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        from mnist_ce.demo.inference import InferenceService
        from mnist_ce.demo.server import make_app, serve
        from mnist_ce.prediction.predict import DEFAULT_WEIGHTS
        from mnist_ce.system.device import use_threads

        stack.enter_context(use_threads(1))
        service = InferenceService(Path(output), threads or os.cpu_count() or 1, model)
        stack.callback(service.pool.close)
        service.trained(DEFAULT_WEIGHTS)
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}/"
        echo(address)
        if sys.stdin.isatty():
            note("Ctrl-C ends it")
        if not no_browser:
            # Without the token, which would stand in the list of processes.
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        serve(make_app(service, host, token, Path(corrections), hosts, origins), listener)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it: without it, each answer on one that is kept waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        reason = one_line(error).partition(" (while")[0]  # Python's addition
        raise UsageError(
            f"--host {host} --port {port}: {reason}; --port 0 takes any free port"
        ) from None
    return listener

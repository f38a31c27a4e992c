"""Protection of the server: who may ask it, how much at a time, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_BODY_BYTES = 16_000_000  # above the photographs of most phones
MAX_HELD_BYTES = 32 * MAX_BODY_BYTES  # of the bodies of all requests at once
MAX_CONNECTIONS = 256
MAX_BODY_SECONDS = 15.0
MAX_WAIT_SECONDS = 20.0  # for a request after the last answer, or until a client takes an answer
LOOK_SECONDS = 0.2  # between two looks at the connections
PIPELINE_SECONDS = 0.2  # until a request that was sent before the last was answered
WRONG_TOKEN_SECONDS = 1.0
COOKIE = "mnist_ce_token"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

logger = logging.getLogger(__name__)


class LimitedProtocol(H11Protocol):
    """HTTP over a connection that knows since when its client keeps the server waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that whatever is not taken pauses writing
        self.waits_since = self.loop.time()

    @property
    def is_waiting(self) -> bool:
        """Whether a request has yet to come, the client to take an answer, or to find its token."""
        is_asked = self.cycle is not None and not self.cycle.response_complete
        is_busy = is_asked and not (self.cycle.more_body or "is_slowed" in self.scope)
        return not is_busy or self.flow.write_paused

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        is_unanswered = self.cycle is not None and not self.cycle.response_complete
        if is_unanswered and (task := self.scope["state"].get("task")):
            task.cancel()  # nobody waits for its images any more

    def on_response_complete(self) -> None:
        self.waits_since = self.loop.time()
        if self.conn.trailing_data[0]:  # many requests at once, as no browser sends, get few turns
            self.loop.call_later(PIPELINE_SECONDS, super().on_response_complete)
        else:
            super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.waits_since = self.loop.time()


async def end_waiting(connections: Collection[LimitedProtocol]) -> None:
    """From time to time end the connections whose clients keep the server waiting for too long.

    Of more than `MAX_CONNECTIONS` those end that have waited for their client the longest, first
    the ones that have never asked anything: a client between two requests is no flood.
    """
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        waiting = sorted(
            (one for one in connections if one.is_waiting),
            key=lambda one: (one.cycle is not None, one.waits_since),
        )
        num_surplus, now = len(connections) - MAX_CONNECTIONS, asyncio.get_running_loop().time()
        for place, one in enumerate(waiting):
            if place < num_surplus or now - one.waits_since > MAX_WAIT_SECONDS:
                one.transport.abort()


@dataclass(eq=False)
class SecurityMiddleware:
    """Refuses requests to other hosts, from pages of other origins, or without the token.

    `host` is the address that the server listens on, `hosts` the names that a proxy has for it, and
    `origins` those of other pages that may ask. The token, if there is one, is needed for every
    path under /v1/, as `Authorization: Bearer …` or as a cookie.
    """

    app: ASGIApp
    host: str
    token: str | None
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    reported_at: float = 0.0  # the last wrong token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        scope.setdefault("state", {})["task"] = asyncio.current_task()
        request = Request(scope)
        if refusal := self.refusal(request):
            status, reason = refusal
            if status == 401:  # whoever guesses tokens waits, and is reported once in a while
                if (now := time.monotonic()) > self.reported_at + WRONG_TOKEN_SECONDS:
                    self.reported_at = now
                    logger.warning(f"wrong token from {request.client and request.client.host}")
                scope["is_slowed"] = True
                await asyncio.sleep(WRONG_TOKEN_SECONDS)
            await JSONResponse({"error": reason}, status)(scope, receive, send_with_headers)
        else:  # uvicorn leaves out the body of an answer to HEAD
            method = "GET" if request.method == "HEAD" else request.method
            await self.app({**scope, "method": method}, receive, send_with_headers)

    def refusal(self, request: Request) -> tuple[int, str] | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        # On another address only who has the token is answered, whatever name led here.
        if self.host in LOOPBACK and _host_name(host) not in (*LOOPBACK, *self.hosts):
            return 421, "the Host header names another host than this server: see --allow-host"
        is_own = origin in (None, f"http://{host}", f"https://{host}")
        # A proxy may put its own name for this server, and another port, in the place of the host.
        is_own |= _host_name((origin or "").partition("://")[2]) in self.hosts
        if not is_own and origin not in self.origins:
            return 403, "requests from pages of another origin are refused: see --allow-origin"
        if not request.url.path.startswith("/v1/"):
            return None
        if is_own and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests from pages of another site are refused"
        if self.token is not None and not self.has_token(request):
            return 401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN"
        return None

    def has_token(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get(COOKIE, "")
        return secrets.compare_digest(token.encode(), (self.token or "").encode())


def _host_name(header: str) -> str:
    """Return the name or address in `name:port`; nothing where it is none."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?", header.lower())
    return "" if match is None else match[1] or match[2]


@dataclass(eq=False)
class Bodies:
    """The bodies of all requests at a time, which have `MAX_HELD_BYTES` together."""

    num_bytes: int = 0
    receiving: dict[asyncio.Timeout, int] = field(default_factory=dict)  # bytes of each so far

    @contextlib.asynccontextmanager
    async def hold(self, request: Request) -> AsyncIterator[bytes]:
        """Receive a body; of too many bytes the largest one that is not whole yet makes room.

        Raises:
            HTTPException: 400 if there is none, 408 or 413 if it takes too long or is too large.
        """
        body, declared = bytearray(), request.headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        timeout = asyncio.timeout(MAX_BODY_SECONDS)
        try:
            async with timeout:
                chunks = request.stream()
                while size <= MAX_BODY_BYTES and (chunk := await anext(chunks, b"")):
                    body += chunk
                    size, self.receiving[timeout] = max(size, len(body)), len(body)
                    self.num_bytes += len(chunk)
                    if self.num_bytes > MAX_HELD_BYTES:
                        going = (one for one in self.receiving if not one.expired())
                        max(going, key=self.receiving.__getitem__).reschedule(0)
            self.receiving.pop(timeout, None)
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES:,} bytes")
            if not body:
                raise HTTPException(400, "the body is empty: send the bytes of an image")
            yield bytes(body)
        except (TimeoutError, ClientDisconnect):
            raise HTTPException(408, "the body took too long, or others needed its room") from None
        finally:
            self.receiving.pop(timeout, None)
            self.num_bytes -= len(body)

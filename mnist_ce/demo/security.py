"""Protection of the server: who may ask it, how much at a time, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
import socket
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mnist_ce.system.text import one_line

MAX_BODY_BYTES = 16_000_000  # above the photographs of most phones
MAX_BODY_SECONDS = 15.0
# Requests at once: with MAX_BODY_BYTES those of POST bound the memory of what is received.
MAX_ACTIVE = {"POST requests": 32, "streams": 8, "requests": 256}
MAX_CONNECTIONS = 256
MAX_QUEUE_SECONDS = 1.0  # that a request waits for its turn
MAX_WAIT_SECONDS = 10.0  # for the head of a request, or until a client takes an answer
WRONG_TOKEN_SECONDS = 1.0
COOKIE = "mnist_ce_token"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = "; ".join(
    (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

logger = logging.getLogger(__name__)


class LimitedProtocol(H11Protocol):
    """HTTP over a connection that ends when its client keeps the server waiting.

    Of more than `MAX_CONNECTIONS` the one ends that has waited for its client the longest, if
    possible for its first request.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that whatever is not taken pauses writing
        self.deadline = self.loop.call_later(MAX_WAIT_SECONDS, self.end_if_waiting)
        if len(self.connections) > MAX_CONNECTIONS:
            limited = (one for one in self.connections if isinstance(one, LimitedProtocol))
            waiting = (one for one in limited if one.is_waiting)
            # First one that has never asked anything: a client between two requests is no flood.
            oldest = min(waiting, key=lambda one: (one.cycle is not None, one.deadline.when()))
            oldest.transport.abort()
            self.connections.discard(oldest)

    @property
    def is_waiting(self) -> bool:
        """Whether a request has yet to come, the client to take an answer, or to find its token."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered or self.flow.write_paused or "is_slowed" in self.scope

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.deadline.cancel()
        is_unanswered = self.cycle is not None and not self.cycle.response_complete
        if is_unanswered and (task := self.scope["state"].get("task")):
            task.cancel()  # nobody waits for its images any more

    def end_if_waiting(self) -> None:
        if self.is_waiting:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.restart_deadline()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.restart_deadline()

    def restart_deadline(self) -> None:
        self.deadline.cancel()
        self.deadline = self.loop.call_later(MAX_WAIT_SECONDS, self.end_if_waiting)


@dataclass(eq=False)
class SecurityMiddleware:
    """Refuses requests to other hosts, from other pages, without the token, or too many at once.

    `host` is the address that the server listens on, `hosts` the names that a proxy has for it, and
    `origins` those of other pages that may ask. The token, if there is one, is needed for every
    path under /v1/, as `Authorization: Bearer …` or as a cookie. Among too many requests the
    oldest of `receiving`, whose bodies have yet to come, makes room.
    """

    app: ASGIApp
    host: str
    token: str | None
    receiving: dict[asyncio.Timeout, None]
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    num_active: Counter[str] = field(default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})["task"] = asyncio.current_task()
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        async def refuse(status: int, reason: str) -> None:
            response = JSONResponse({"error": reason}, status, {"Retry-After": "1"})
            await response(scope, receive, send_with_headers)

        request = Request(scope)
        if refusal := self.refusal(request):
            if refusal[0] == 401:  # whoever guesses tokens waits, the first of them is reported
                if not self.num_active["guesses"]:
                    client = request.client.host if request.client else "an unknown address"
                    logger.warning(f"wrong token from {client}")
                self.num_active["guesses"] += 1
                scope["is_slowed"] = True
                try:
                    await asyncio.sleep(WRONG_TOKEN_SECONDS)
                finally:
                    self.num_active["guesses"] -= 1
            await refuse(*refusal)
            return
        kind = "POST requests" if request.method == "POST" else "requests"
        kind = "streams" if request.url.path == "/v1/events" else kind
        give_up_at = asyncio.get_running_loop().time() + MAX_QUEUE_SECONDS
        while self.num_active[kind] >= MAX_ACTIVE[kind]:
            waiting = (one for one in self.receiving if not one.expired() and "POST" in kind)
            if oldest := next(waiting, None):
                del self.receiving[oldest]  # it makes room
                oldest.reschedule(0)
                break
            if asyncio.get_running_loop().time() > give_up_at:
                await refuse(429, f"more than {MAX_ACTIVE[kind]} {kind} at once: try again")
                return
            await asyncio.sleep(0.05)  # of those that came at once, none may be receiving yet
        self.num_active[kind] += 1  # nothing was awaited since it was compared
        try:
            is_head = request.method == "HEAD" and kind != "streams"  # uvicorn leaves out the body
            asked = {**scope, "method": "GET"} if is_head else scope
            await self.app(asked, receive, send_with_headers)
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            logger.error(f"{request.method} {request.url.path} failed: {reason}")
            if not has_started:
                await refuse(500, f"internal error, please report: {reason}")
        finally:
            self.num_active[kind] -= 1

    def refusal(self, request: Request) -> tuple[int, str] | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self.is_own_host(host):
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

    def is_own_host(self, header: str) -> bool:
        """Whether a Host header names this server; no name that only DNS could have led here."""
        host = _host_name(header)
        if host in (*LOOPBACK, self.host, *self.hosts):
            return bool(host)
        if self.host in LOOPBACK:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(host))
        return host == socket.gethostname().lower()

    def has_token(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get(COOKIE, "")
        # In constant time.
        return secrets.compare_digest(token.encode(), (self.token or "").encode())


def _host_name(header: str) -> str:
    """Return the name or address in `name:port`; nothing where it is none."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?", header.lower())
    return "" if match is None else match[1] or match[2]


async def read_body(request: Request) -> bytes:
    """Return a request's body, up to `MAX_BODY_BYTES` and for `MAX_BODY_SECONDS`.

    Raises:
        HTTPException: 413 or 408 beyond these, 400 where there is none.
    """
    body = bytearray()
    too_large = HTTPException(413, f"the body has more than {MAX_BODY_BYTES:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    receiving: dict[asyncio.Timeout, None] = request.app.state.receiving
    timeout = asyncio.timeout(MAX_BODY_SECONDS)
    try:
        async with timeout:
            receiving[timeout] = None
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, "the body took too long") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ends early") from None
    finally:
        receiving.pop(timeout, None)
    if not body:
        raise HTTPException(400, "the body is empty: send the bytes of an image")
    return bytes(body)

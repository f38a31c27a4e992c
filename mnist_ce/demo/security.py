"""Protection of the server: who may ask it, and how much at a time."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import socket
from collections import Counter

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 16_000_000  # above the photographs of most phones
# Requests at once: with MAX_BODY_BYTES those of POST bound the memory of what is received.
MAX_ACTIVE = {"POST requests": 32, "streams": 8, "requests": 256}
MAX_BODY_SECONDS = 15.0
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


class SecurityMiddleware:
    """Refuses requests to other hosts, from other pages, without the token, or too many at once.

    `host` is the address that the server listens on. The token, if there is one, is needed for
    every path under /v1/, as `Authorization: Bearer …` or as a cookie.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        self.app, self.host, self.token = app, host, token
        self.num_active: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope)
        kind = "POST requests" if request.method == "POST" else "requests"
        kind = "streams" if request.url.path == "/v1/events" else kind
        refusal = self.refusal(request)
        if refusal is None and self.num_active[kind] >= MAX_ACTIVE[kind]:
            refusal = 429, f"more than {MAX_ACTIVE[kind]} {kind} at once: try again"
        if refusal is not None:
            status, reason = refusal
            response = JSONResponse({"error": reason}, status, {"Retry-After": "1"})
            await response(scope, receive, send_with_headers)
            return
        self.num_active[kind] += 1  # nothing was awaited since it was compared
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self.num_active[kind] -= 1

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Return why a request may not be made, with the HTTP status."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self.is_own_host(host):
            return 421, "the Host header names another host than this server"
        if origin not in (None, f"http://{host}", f"https://{host}"):
            return 403, "requests from pages of another origin are refused"
        if not request.url.path.startswith("/v1/"):
            return None
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests from pages of another site are refused"
        if self.token is not None and not self.has_token(request):
            return 401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN"
        return None

    def is_own_host(self, header: str) -> bool:
        """Whether a Host header names this server; no name that only DNS could have led here."""
        match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?", header.lower())
        host = "" if match is None else match[1] or match[2]
        if host in LOOPBACK or host == self.host:
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
        return secrets.compare_digest(
            token.encode(), (self.token or "").encode()
        )  # in constant time


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
    try:
        async with asyncio.timeout(MAX_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the body took more than {MAX_BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ends early") from None
    if not body:
        raise HTTPException(400, "the body is empty: send the bytes of an image")
    return bytes(body)

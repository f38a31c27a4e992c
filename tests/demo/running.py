"""A server that runs in the process of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi")
from mnist_ce.demo.inference import InferenceService


@dataclass(frozen=True)
class Demo:
    """A running server."""

    url: str
    folder: Path  # with `runs`, one of which is `small`, and `corrections`
    service: InferenceService

    def post(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", content=content, headers=headers, timeout=30)

"""The HTTP server: the page, the interface for programs, and the stream of a run's curves."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import logging
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter, run_sync
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from mnist_ce.demo.corrections import WRITING, keep_correction, to_png
from mnist_ce.demo.inference import SHIPPED, InferenceService, inspect_image
from mnist_ce.demo.live import RunWatcher
from mnist_ce.demo.security import COOKIE, LimitedProtocol, SecurityMiddleware, read_body
from mnist_ce.prediction.predict import DEFAULT_WEIGHTS, Predictions, PredictOptions
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import ImageError, ImageTooLargeError, MnistCeError
from mnist_ce.system.files import shipped_dir, version
from mnist_ce.system.text import did_you_mean, one_line, plain_reason, sanitize

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_FILES, MAX_PARTS, MAX_HEAD_BYTES = 64, 128, 4096  # of a form
MAX_SECONDS = 20.0  # for the predictions of one request
MAX_AT_ONCE = 4  # images of one request: those of the others come in between
MAX_THREADS = 4  # for what would block the event loop, beside one for the streams
STREAM_SECONDS = 1.0


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str


ANSWER = json.loads((STATIC / "docs/answer.json").read_text("utf-8"))  # an example
IMAGES = {"requestBody": json.loads((STATIC / "docs/images.json").read_text("utf-8"))}
Checkpoint = Annotated[str, Query(description="A name of /v1/models.")]
Multi = Annotated[
    bool | None, Query(description="Read every digit; by default, where there are several.")
]
Format = Annotated[Literal["json", "text"], Query(description="Records, or the reading alone.")]
TopK = Annotated[int, Query(ge=1, le=100, description="Most probable classes to list.")]
Confidence = Annotated[float | None, Query(ge=0, le=1, description="As --min-confidence.")]


def only_known_options(request: Request) -> None:
    """Refuse an option of the address that the path does not have, which would do nothing."""
    known = [option.alias for option in request.scope["route"].dependant.query_params]
    if unknown := sorted({*request.query_params} - {*known}):
        near = did_you_mean(unknown[0], known)
        raise HTTPException(422, f"there is no option {sanitize(unknown[0])}{near}")


router = APIRouter(
    dependencies=[Depends(only_known_options)],
    responses={"default": {"model": Problem, "description": "A refusal."}},
)


@router.get("/healthz")
async def health() -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ok"}


@router.get("/v1/models")
def models(request: Request) -> list[dict[str, Any]]:
    """The checkpoints at hand: the shipped ones, then the runs, newest first."""
    keys = ("dataset", "recipe", "class_names", "test_accuracy", "status")
    listed = []
    for name, path in request.app.state.service.checkpoints().items():
        record = RunDir(path.parent).read_record() or RunRecord()
        about = {"name": name, "is_shipped": name in SHIPPED, "path": sanitize(str(path))}
        listed.append(about | {key: record[key] for key in keys})
    return listed


@router.post(
    "/v1/predict",
    openapi_extra=IMAGES,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        422: {"model": Problem | list[dict[str, Any]]},
    },
)
async def predict(
    request: Request,
    checkpoint: Checkpoint = DEFAULT_WEIGHTS,
    multi: Multi = None,
    top_k: TopK = 3,
    min_confidence: Confidence = None,
    format: Format = "json",
) -> Response:
    """Read the digits in one or more images.

    The body is one image, or a form with files. The answer is that of `mnist-ce predict --json`, a
    record for each digit, or of `--text`. Status 422 where no image could be read.
    """
    service: InferenceService = request.app.state.service
    images = await read_images(request)
    trained = await run_sync(service.trained, checkpoint)
    options = PredictOptions(top_k=top_k, multi=multi, min_confidence=min_confidence)
    results = await classify(service, images, trained, options)
    records = Predictions(itertools.chain.from_iterable(results))
    status = 422 if all(record.status == "error" for record in records) else 200
    if format == "text":
        return PlainTextResponse(f"{records.text}\n", status)
    return JSONResponse([record.to_dict() for record in records], status)


@router.post("/v1/inspect", openapi_extra=IMAGES)
async def inspect(
    request: Request,
    checkpoint: Annotated[list[str] | None, Query(max_length=2, description="Up to two.")] = None,
    multi: Multi = None,
    target: Annotated[str | None, Query(description="The right class.")] = None,
    index: Annotated[int, Query(ge=0, description="Which digit to explain.")] = 0,
    steps: Annotated[int, Query(ge=0, le=100, description="Training steps on it, before.")] = 0,
    learning_rate: Annotated[float, Query(ge=1e-6, le=1, description="Of these.")] = 0.01,
) -> JSONResponse:
    """Show what one or two networks make of an image, as they are or after training steps on it.

    Records, stages, activations of each layer, gradient × input, and the loss for `target` as in
    `mnist-ce explain --json`. With `steps`, all but the records is that of a copy of the network
    after as many SGD steps on this digit alone, which no other request sees; `step_losses` has the
    loss before each.
    """
    service: InferenceService = request.app.state.service
    names = checkpoint or [DEFAULT_WEIGHTS]
    images = await read_images(request)
    models = [await run_sync(service.trained, name) for name in names]
    inspected: list[dict[str, Any]] = []
    for name, trained in zip(names, models, strict=True):
        top_k = len(trained.class_names)
        options = PredictOptions(top_k=top_k, multi=multi, keep_stages=True)
        (records,) = await classify(service, images[:1], trained, options)
        records = Predictions(record for record in records if record.page in (None, 1))
        if records[0].status == "error":
            raise ImageError(str(records[0].reason))
        # The second network may have other classes.
        known = None if inspected and target not in trained.class_names else target
        content = await run_sync(
            inspect_image, trained, records, known, index, steps, learning_rate
        )
        inspected.append({"checkpoint": name, **content})
    return JSONResponse(inspected)


@router.post("/v1/corrections", openapi_extra=IMAGES, status_code=201)
async def correct(
    request: Request, label: Annotated[int, Query(ge=0, le=9, description="The digit.")]
) -> dict[str, str | int]:
    """Keep an image with its label, in the folder that `--dataset folder:DIR` reads."""
    ((_, content), *_) = await read_images(request)
    service: InferenceService = request.app.state.service
    png = await asyncio.wrap_future(service.pool.submit(to_png, content))
    folder: Path = request.app.state.corrections
    path, number = await run_sync(keep_correction, folder, png, label)
    return {"file": path.name, "folder": str(folder), "number": number}


@router.get(
    "/v1/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    request: Request, run: Annotated[list[str] | None, Query(description="Names.")] = None
) -> StreamingResponse:
    """Stream what changes in the runs: server-sent events `runs`, `curve` and `snapshot`.

    After `failed`, with a reason, the stream ends.
    """
    state = request.app.state
    watcher = RunWatcher(state.service.output, run or ())

    def message(name: str, content: object) -> str:
        return f"event: {name}\ndata: {json.dumps(content, allow_nan=False)}\n\n"

    async def stream() -> AsyncIterator[str]:
        try:
            while True:
                changes = watcher.changes()
                while event := await run_sync(next, changes, None, limiter=state.stream_limiter):
                    yield message(*event)
                yield ":\n\n"  # a comment, which finds out whether the page is still there
                for _ in range(5):
                    if state.server.should_exit:
                        return
                    await asyncio.sleep(STREAM_SECONDS / 5)
        except Exception as error:  # the next stream would have it, too
            logger.error(f"the stream of runs failed: {type(error).__name__}: {one_line(error)}")
            yield message("failed", {"reason": one_line(error)})

    return StreamingResponse(stream(), media_type="text/event-stream")


@router.post("/v1/session", status_code=204)
async def session(request: Request) -> Response:
    """Turn the token of this request into a cookie, for the page."""
    response = Response(status_code=204)
    token: str = request.app.state.token or ""
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
    return response


async def classify(
    service: InferenceService,
    images: Sequence[tuple[str, bytes]],
    trained: TrainedModel,
    options: PredictOptions,
) -> list[Predictions]:
    """Return the records of each image, a name and its bytes; 422 after `MAX_SECONDS`."""
    turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def predict_in_turn(content: bytes) -> Predictions:
        async with turns:
            return await service.predict(content, trained, options)

    try:
        async with asyncio.timeout(MAX_SECONDS):
            results = await asyncio.gather(*(predict_in_turn(content) for _, content in images))
    except TimeoutError:
        raise HTTPException(422, f"the images took more than {MAX_SECONDS:g} s") from None
    return [
        Predictions(replace(record, path=name) for record in records)
        for (name, _), records in zip(images, results, strict=True)
    ]


async def read_images(request: Request) -> list[tuple[str, bytes]]:
    """Return the images of a request with their names, `-` for a body without names."""
    body, kind = await read_body(request), request.headers.get("content-type", "")
    readers = {"multipart/form-data": form_files, "application/json": json_image}
    reader = readers.get(kind.partition(";")[0].strip().lower())
    return [("-", body)] if reader is None else await run_sync(reader, kind, body)


def json_image(_: str, body: bytes) -> list[tuple[str, bytes]]:
    try:
        return [("-", json.loads(body)["image"].encode(errors="replace"))]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        advice = """send {"image": "…"}, with its base64 or a data URL"""
        raise HTTPException(422, f"the JSON has no image: {advice}") from None


def form_files(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Return name and content of the files of a form (RFC 7578); its text is not read.

    Raises:
        HTTPException: 400 if the form is damaged or has no file, or too many.
    """
    boundary = re.search(r'boundary="?([^";,]{1,70})', content_type)
    damaged = HTTPException(400, "the form is damaged")
    if boundary is None:
        raise damaged
    separator = b"\r\n--" + boundary[1].encode("latin-1")
    _, *parts = (b"\r\n" + body).split(separator, MAX_PARTS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        raise damaged
    files = []
    for part in parts[:-1]:
        head, end_of_head, content = part.partition(b"\r\n\r\n")
        if not end_of_head or len(head) > MAX_HEAD_BYTES:
            raise damaged
        if name := re.search(rb'filename="([^"]*)"|filename=([^\s;"]+)', head):
            text = (name[1] or name[2] or b"-").decode("utf-8", "replace")
            files.append((sanitize(text), content))
    if not 1 <= len(files) <= MAX_FILES:
        raise HTTPException(400, f"the form holds {len(files)} files: send 1 to {MAX_FILES}")
    return files


@contextlib.asynccontextmanager
async def _few_threads(_: FastAPI) -> AsyncIterator[None]:
    current_default_thread_limiter().total_tokens = MAX_THREADS
    yield


def make_app(
    service: InferenceService,
    host: str,
    token: str | None,
    corrections: Path,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> FastAPI:
    """Return the application; for hosts, origins and token see `SecurityMiddleware`.

    `corrections` is the folder for images with a label that the user gives.
    """
    app = FastAPI(
        title="mnist-ce", version=version(), docs_url=None, redoc_url=None, lifespan=_few_threads
    )
    state = app.state
    state.service, state.token, state.corrections = service, token, corrections
    state.receiving, state.stream_limiter = {}, CapacityLimiter(1)
    limits: dict[str, Any] = {"host": host, "token": token, "hosts": hosts, "origins": origins}
    app.add_middleware(SecurityMiddleware, receiving=state.receiving, **limits)
    if origins:  # it answers the preflight requests of browsers, which have no token
        headers = ("Authorization", "Content-Type")
        options: dict[str, Any] = {"allow_methods": ("GET", "POST"), "allow_headers": headers}
        app.add_middleware(CORSMiddleware, allow_origins=origins, **options)
    app.include_router(router)
    app.mount("/examples", StaticFiles(directory=shipped_dir("examples")))
    for kind in (MnistCeError, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, error_response)
    # Here, since FastAPI would leave out what is null.
    answers = app.openapi()["paths"]["/v1/predict"]["post"]["responses"]
    answers["200"]["content"]["application/json"] = {"example": ANSWER}
    app.router.default = StaticFiles(directory=STATIC, html=True)  # for whatever is no route
    return app


async def error_response(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StarletteHTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        reason = f"{first['loc'][-1]} {plain_reason(first['msg'])}"
        return JSONResponse({"error": reason}, 422)
    status = 413 if isinstance(error, ImageTooLargeError) else 422
    return JSONResponse({"error": str(error)}, status)


def make_server(app: FastAPI) -> uvicorn.Server:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the middleware reports errors
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    app.state.server = server = uvicorn.Server(config)
    return server


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until a signal; those that have begun get a second more.

    The process then ends, whatever its threads still do, with 128 + the signal's number.
    """

    def end(number: int, _: object) -> None:
        app.state.service.close()
        WRITING.acquire(timeout=0.5)  # no correction is half written
        os._exit(128 + number)

    # glibc (-3 is M_MMAP_THRESHOLD) then returns the memory of bodies and images at once: with the
    # first snapshot of a run the process grew by 302 MB in place of 390, 163 of them by imports.
    with contextlib.suppress(AttributeError, TypeError):  # another system
        ctypes.CDLL(None).mallopt(-3, 1 << 17)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)  # uvicorn raises the signal again at its end
    make_server(app).run(sockets=[listener])

"""The HTTP server: the page and the interface for programs."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import mimetypes
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter, run_sync
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route

from mnist_ce.demo import security
from mnist_ce.demo.corrections import keep_correction, to_png
from mnist_ce.demo.inference import SHIPPED, InferenceService, in_time, inspect_image
from mnist_ce.demo.live import runs_now
from mnist_ce.prediction.predict import DEFAULT_WEIGHTS, Predictions, PredictOptions
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import ImageError, ImageTooLargeError, MnistCeError
from mnist_ce.system.files import shipped_dir, version
from mnist_ce.system.text import did_you_mean, one_line, plain_reason, sanitize

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_FILES, MAX_PARTS = 64, 128  # of a form
MAX_SECONDS = 20.0  # for the predictions of one request
MAX_AT_ONCE = 4  # images of one request: those of the others come in between
MAX_THREADS = 4  # for what would block the event loop, beside one for runs and corrections


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str


ANSWER = json.loads((STATIC / "docs/answer.json").read_text("utf-8"))  # an example
IMAGES = {"requestBody": json.loads((STATIC / "docs/images.json").read_text("utf-8"))}
Multi = Annotated[bool | None, Query(description="Every digit; by default, of several.")]
Format = Annotated[Literal["json", "text"], Query(description="Records, or the reading alone.")]
Confidence = Annotated[float | None, Query(ge=0, le=1, description="As --min-confidence.")]


def only_known_options(request: Request) -> None:
    """Refuse an option of the address that the path does not have, which would do nothing."""
    known = [option.alias for option in request.scope["route"].dependant.query_params]
    if unknown := sorted({*request.query_params} - {*known}):
        near = did_you_mean(unknown[0], known)
        raise HTTPException(422, f"there is no option {sanitize(unknown[0])}{near}")


def service_of(request: Request) -> InferenceService:
    return request.app.state.service  # type: ignore[no-any-return]


Service = Annotated[InferenceService, Depends(service_of)]
router = APIRouter(
    dependencies=[Depends(only_known_options)],
    responses={"default": {"model": Problem, "description": "A refusal."}},
)


@router.get("/healthz")
async def health() -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ok"}


@router.get("/v1/models")
def models(service: Service) -> list[dict[str, Any]]:
    """The checkpoints at hand: the shipped ones, then the runs, newest first."""
    keys = ("dataset", "recipe", "class_names", "test_accuracy", "status")
    listed = []
    for name, path in service.checkpoints().items():
        record = RunDir(path.parent).read_record() or RunRecord()
        about = {"name": name, "is_shipped": name in SHIPPED, "path": sanitize(str(path))}
        listed.append(about | {key: record[key] for key in keys})
    return listed


async def read_images(request: Request) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Yield the images of a request with their names, `-` for a body without names."""
    kind = request.headers.get("content-type", "")
    readers = {"multipart/form-data": form_files, "application/json": json_image}
    reader = readers.get(kind.partition(";")[0].strip().lower())
    async with request.app.state.bodies.hold(request) as body:
        yield [("-", body)] if reader is None else await run_sync(reader, kind, body)


Images = Annotated[list[tuple[str, bytes]], Depends(read_images)]


@router.post(
    "/v1/predict",
    openapi_extra=IMAGES,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        422: {"model": Problem | list[dict[str, Any]]},
    },
)
async def predict(
    service: Service,
    images: Images,
    checkpoint: Annotated[str, Query(description="A name of /v1/models.")] = DEFAULT_WEIGHTS,
    multi: Multi = None,
    top_k: Annotated[int, Query(ge=1, le=100, description="Most probable classes to list.")] = 3,
    min_confidence: Confidence = None,
    format: Format = "json",
) -> Response:
    """Read the digits in one or more images.

    The body is one image, or a form with files. The answer is that of `mnist-ce predict --json`, a
    record for each digit, or of `--text`. Status 422 where no image could be read.
    """
    trained = await run_sync(service.trained, checkpoint)
    options = PredictOptions(top_k=top_k, multi=multi, min_confidence=min_confidence)
    records = await classify(service, images, trained, options)
    status = 422 if all(record.status == "error" for record in records) else 200
    if format == "text":
        return PlainTextResponse(f"{records.text}\n", status)
    return JSONResponse([record.to_dict() for record in records], status)


@router.post("/v1/inspect", openapi_extra=IMAGES)
async def inspect(
    service: Service,
    images: Images,
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
    after as many SGD steps on this digit alone; `step_losses` has the loss before each.
    """
    inspected: list[dict[str, Any]] = []
    for name in checkpoint or [DEFAULT_WEIGHTS]:
        trained = await run_sync(service.trained, name)
        options = PredictOptions(top_k=len(trained.class_names), multi=multi, keep_stages=True)
        records = await classify(service, images[:1], trained, options)
        records = Predictions(record for record in records if record.page in (None, 1))
        if records[0].status == "error":
            raise ImageError(str(records[0].reason))
        # The second network may have other classes.
        known = None if inspected and target not in trained.class_names else target
        arguments = (trained, records, known, index, steps, learning_rate)
        inspected.append({"checkpoint": name, **await run_sync(inspect_image, *arguments)})
    return JSONResponse(inspected)


@router.post("/v1/corrections", openapi_extra=IMAGES, status_code=201)
async def correct(
    request: Request,
    service: Service,
    images: Images,
    label: Annotated[int, Query(ge=0, le=9, description="The digit.")],
) -> dict[str, str | int]:
    """Keep an image with its label, in the folder that `--dataset folder:DIR` reads."""
    state = request.app.state
    png = await in_time(service.pool.submit(to_png, images[0][1]))
    path, number = await run_sync(
        keep_correction, state.corrections, png, label, limiter=state.one_thread
    )
    return {"file": path.name, "folder": str(path.parent), "number": number}


@router.get("/v1/runs")
async def runs(
    request: Request,
    service: Service,
    run: Annotated[list[str] | None, Query(max_length=16, description="Names.")] = None,
) -> Response:
    """The runs, of those named (else the newest) the curves, of the first weights and mistakes."""
    limiter = request.app.state.one_thread
    return JSONResponse(await run_sync(runs_now, service.output, run or (), limiter=limiter))


@router.post("/v1/session", status_code=204)
async def session(request: Request, response: Response) -> None:
    """Turn the token of this request into a cookie, for the page."""
    token: str = request.app.state.token or ""
    response.set_cookie(security.COOKIE, token, httponly=True, samesite="strict")


async def classify(
    service: InferenceService,
    images: Sequence[tuple[str, bytes]],
    trained: TrainedModel,
    options: PredictOptions,
) -> Predictions:
    """Return the records of all images, each a name and its bytes; 422 after `MAX_SECONDS`."""
    results = Predictions()
    try:
        async with asyncio.timeout(MAX_SECONDS):
            for start in range(0, len(images), MAX_AT_ONCE):
                few = images[start : start + MAX_AT_ONCE]
                predictions = (service.predict(*image, trained, options) for image in few)
                results.extend(chain.from_iterable(await asyncio.gather(*predictions)))
    except TimeoutError:
        raise HTTPException(422, f"the images took more than {MAX_SECONDS:g} s") from None
    return results


def json_image(_: str, body: bytes) -> list[tuple[str, bytes]]:
    try:
        return [("-", json.loads(body)["image"].encode(errors="replace"))]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise HTTPException(422, 'the JSON has no image: send {"image": "base64"}') from None


def form_files(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Return name and content of the files of a form (RFC 7578); its text is not read.

    Raises:
        HTTPException: 400 if the form is damaged or has no file, or too many.
    """
    boundary = re.search(r'boundary="?([^";,]{1,70})', content_type)
    separator = b"\r\n--" + (boundary[1] if boundary else "\r\n").encode("latin-1")
    parts = (b"\r\n" + body).split(separator, MAX_PARTS)
    if not parts[-1].startswith(b"--"):
        raise HTTPException(400, "the form is damaged")
    files = []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if name := re.search(rb'filename="([^"]*)"|filename=([^\s;"]+)', head):
            text = (name[1] or name[2] or b"-").decode("utf-8", "replace")
            files.append((sanitize(text), content))
    if not 1 <= len(files) <= MAX_FILES:
        raise HTTPException(400, f"the form holds {len(files)} files: send 1 to {MAX_FILES}")
    return files


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    current_default_thread_limiter().total_tokens = MAX_THREADS
    gc.freeze()  # what is there stays: to look at it again and again takes a quarter of the time
    connections = app.state.server.server_state.connections
    ending = asyncio.create_task(security.end_waiting(connections))
    yield
    ending.cancel()


def make_app(
    service: InferenceService,
    host: str,
    token: str | None,
    corrections: Path,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> FastAPI:
    """Return the application; for hosts, origins and token see `SecurityMiddleware`."""
    details: dict[str, Any] = {"docs_url": None, "redoc_url": None, "lifespan": lifespan}
    app = FastAPI(title="mnist-ce", version=version(), **details)
    state = app.state
    state.service, state.token, state.corrections = service, token, corrections
    state.bodies, state.one_thread = security.Bodies(), CapacityLimiter(1)
    limits: dict[str, Any] = {"host": host, "token": token, "hosts": hosts, "origins": origins}
    app.add_middleware(security.SecurityMiddleware, **limits)
    if origins:  # it answers the preflight requests of browsers, which have no token
        headers = ("Authorization", "Content-Type")
        options: dict[str, Any] = {"allow_methods": ("GET", "POST"), "allow_headers": headers}
        app.add_middleware(CORSMiddleware, allow_origins=origins, **options)
    app.include_router(router)
    for kind in (MnistCeError, RequestValidationError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, error_response)
    # Here, since FastAPI would leave out what is null.
    answers = app.openapi()["paths"]["/v1/predict"]["post"]["responses"]
    answers["200"]["content"]["application/json"] = {"example": ANSWER}
    for at, folder in (("", STATIC), ("/examples", shipped_dir("examples"))):
        for file in folder.rglob("*.*"):  # in memory, so that none takes a thread
            answer = Response(file.read_bytes(), media_type=mimetypes.guess_type(file)[0])
            path = f"{at}/{file.relative_to(folder).as_posix()}".removesuffix("index.html")
            app.router.routes.append(Route(path, answer, methods=["GET"]))
    return app


async def error_response(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StarletteHTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, MnistCeError):
        status = 413 if isinstance(error, ImageTooLargeError) else 422
        return JSONResponse({"error": sanitize(str(error))}, status)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]} {plain_reason(first['msg'])}"}, 422)
    reason = f"{type(error).__name__}: {one_line(error)}"
    logger.error(f"{request.method} {request.url.path} failed: {reason}")
    headers = security.HEADERS | {"Connection": "close"}  # as uvicorn then does
    return JSONResponse({"error": f"internal error, please report: {reason}"}, 500, headers)


def make_server(app: FastAPI) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=security.LimitedProtocol,
        ws="none",
        log_config=None,
        log_level="critical",  # `error_response` reports errors
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    app.state.server = uvicorn.Server(config)
    return app.state.server  # type: ignore[no-any-return]


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until a signal, and a second more; the process ends with 128 + its number."""

    def end(number: int, _: object) -> None:
        app.state.service.pool.close()
        os._exit(128 + number)

    # glibc (-3 is M_MMAP_THRESHOLD) then returns the memory of bodies and images at once.
    with contextlib.suppress(AttributeError, TypeError):  # another system
        ctypes.CDLL(None).mallopt(-3, 1 << 17)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)  # uvicorn raises the signal again at its end
    make_server(app).run(sockets=[listener])

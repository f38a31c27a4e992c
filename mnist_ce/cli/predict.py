"""`mnist-ce predict`."""

from __future__ import annotations

import codecs
import contextlib
import csv
import json as json_module
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import error, is_terminal, note
from mnist_ce.system.errors import RunError, UsageError, sanitize
from mnist_ce.system.files import one_line

if TYPE_CHECKING:
    from mnist_ce.reader.predict import Prediction

MANY = 200  # images from which processes and a progress bar are worth their start


def predict(
    images: Annotated[
        list[str],
        Argument(
            metavar="IMAGE...",
            help="Images, folders (without subfolders), glob patterns, or - for stdin.",
            show_default=False,
        ),
    ],
    checkpoint: options.Checkpoint = None,
    multi: Annotated[
        bool, Option("--multi", help="Read every digit of a row, from left to right.")
    ] = False,
    top_k: Annotated[int, Option(min=1, help="Most probable classes to list.")] = 3,
    min_confidence: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Reject predictions less probable than this, in place of what does not look "
            "like a digit.",
            show_default="reject what does not look like a digit",
        ),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON array.")] = False,
    jsonl: Annotated[bool, Option("--jsonl", help="Print a JSON object per line.")] = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV with a header.")] = False,
    save_inputs: Annotated[
        Path | None, Option(help="Write the network's inputs, 28×28 PNGs.", metavar="DIR")
    ] = None,
    stages: Annotated[
        Path | None,
        Option(
            help="Write the stages of preprocessing as one PNG per image (a file for one image).",
            metavar="DIR or FILE",
        ),
    ] = None,
    input_mean: options.InputMean = 0.0,
    input_std: options.InputStd = 1.0,
    output: options.Output = "checkpoints",
    device: options.Device = "cpu",
    threads: Annotated[
        int,
        Option(
            min=0,
            help=f"CPU threads; from {MANY} images on, processes. 0: as many as cores.",
            metavar="N",
        ),
    ] = 0,
) -> None:
    """Read the digits in images: scans, photographs, drawings.

    An image that shows no single digit is reported as rejected (exit code 0). One
    that cannot be read is named on stderr (exit code 1).

    Examples:
      mnist-ce predict photo.jpg
      mnist-ce predict scans/ --csv > predictions.csv
      mnist-ce predict postcode.png --multi
    """
    if json + jsonl + as_csv > 1:
        raise typer.BadParameter("choose one of --json, --jsonl and --csv")
    with one_blas_thread():
        from mnist_ce.reader.image_io import find_images
        from mnist_ce.reader.pool import PreprocessPool

        sources = list(find_images(images))
        many = len(sources) >= MANY
        with PreprocessPool((threads or os.cpu_count() or 1) if many else 1) as pool:
            from mnist_ce.reader.predict import PredictionSettings, predict_each
            from mnist_ce.runs.load_model import load_model
            from mnist_ce.system.device import use_threads

            trained = load_model(checkpoint, output, input_mean=input_mean, input_std=input_std)
            note(f"checkpoint {trained.path}")
            settings = PredictionSettings(
                top_k=top_k,
                multi=multi,
                min_confidence=min_confidence,
                device=device,
                keep_stages=stages is not None,
            )
            contents = (sys.stdin.buffer.read() if path is None else path for path in sources)
            with use_threads(1 if many else threads):
                records = predict_each(contents, trained, settings, pool)
                if save_inputs is not None or stages is not None:
                    records = _saving(records, save_inputs, stages, single=len(sources) == 1)
                records = _with_progress(records, len(sources) if many and is_terminal() else 0)
                num_errors = _print(records, json=json, jsonl=jsonl, as_csv=as_csv)
    if num_errors:
        raise typer.Exit(1)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Give NumPy's OpenBLAS, which reads this when it is loaded, one thread unless the user chose.

    Its products here are small, and the cores belong to torch and to the pool's processes, which
    inherit the variable.
    """
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _with_progress(records: Iterator[Prediction], total: int) -> Iterator[Prediction]:
    """Report what cannot be read on stderr, and draw a progress bar if `total` > 0."""
    from tqdm import tqdm

    disable = not total
    with tqdm(total=total, unit=" images", leave=False, dynamic_ncols=True, disable=disable) as bar:
        for record in records:
            if record.path is None:
                record = replace(record, path="-")
            if record.index == 0:
                bar.update()
            if record.status == "error":
                bar.clear()
                error(sanitize(record.reason or ""))
            yield record


def _saving(
    records: Iterator[Prediction], inputs: Path | None, stages: Path | None, *, single: bool
) -> Iterator[Prediction]:
    """Write the network's inputs and the stages, numbered so that no name collides."""
    from PIL import Image

    from mnist_ce.reader.image_io import SUFFIXES, draw_stages

    one_file = stages is not None and single and stages.suffix.lower() == ".png"
    if stages is not None and not one_file and stages.suffix.lower() in SUFFIXES:
        raise UsageError(
            f"--stages {stages}: name a folder, or for one image a file that is a .png"
        )
    for option, folder in (("--save-inputs", inputs), ("--stages", None if one_file else stages)):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            reason = f"no such folder can be made: {one_line(failure)}"
            raise RunError(f"{option} {folder}: {reason}") from None
    number = 0
    for record in records:
        number += record.index == 0
        name = os.fsencode(Path(record.path or "-").stem)[:200]  # of 255 that a file name may have
        stem = f"{number:05d}-{name.decode('utf-8', 'ignore')}"
        if inputs is not None and record.pixels is not None:
            Image.fromarray(record.pixels).save(inputs / f"{stem}-{record.index}.png")
        if stages is not None and record.stages:
            path = stages if one_file else stages / f"{stem}-stages.png"
            draw_stages(record.stages).save(path, "PNG")
        yield record


def _print(records: Iterator[Prediction], *, json: bool, jsonl: bool, as_csv: bool) -> int:
    """Print the records as they come and return the number of errors."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be valid text
        errors = "surrogateescape" if encoding == "utf-8" else "backslashreplace"
        sys.stdout.reconfigure(errors=errors)
    num_errors = num_printed = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    try:
        for record in records:
            num_errors += record.status == "error"
            row = record.to_dict()
            if json:
                sys.stdout.write((",\n" if num_printed else "[\n") + _json(row, encoding))
            elif jsonl:
                sys.stdout.write(_json(row, encoding) + "\n")
            elif as_csv:
                if not num_printed:
                    table.writerow(row)
                best = (f"{k['label']}:{k['probability']:.6f}" for k in row["top_k"])
                table.writerow((row | {"top_k": " ".join(best)}).values())  # None: an empty cell
            else:
                sys.stdout.write(_line(record) + "\n")
            num_printed += 1
    finally:  # valid JSON even if an error comes between
        if json and num_printed:
            sys.stdout.write("\n]\n")
        sys.stdout.flush()
    return num_errors


def _json(row: dict[str, Any], encoding: str) -> str:
    """Return a record as JSON; characters that the output cannot encode are escaped."""
    text = json_module.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json_module.dumps(row, allow_nan=False)
    return text


def _line(record: Prediction) -> str:
    """Return a record for people."""
    path = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.path or "-")
    path += f" [{record.index}]" if record.index else ""
    if record.status == "error":
        return f"{'error':>8}           {path}"
    if record.label is None:
        return f"{'-':>8}           {path}  ({record.reason})"
    others = ", ".join(f"{k['class_name']} {k['probability']:.1%}" for k in record.top_k[1:])
    name = record.class_name if record.status == "ok" else f"({record.class_name}?)"
    more = record.reason or others
    return f"{name:>8}  {record.probability:7.1%}  {path}" + (f"  ({more})" if more else "")

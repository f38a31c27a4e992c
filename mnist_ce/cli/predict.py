"""`mnist-ce predict`."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, error, json_text, note, warn, wrap
from mnist_ce.system.errors import UsageError
from mnist_ce.system.text import percent, sanitize

if TYPE_CHECKING:
    from mnist_ce.prediction.predict import Prediction
    from mnist_ce.runs.load_model import TrainedModel

IMAGES_HELP = (
    "Files, folders, patterns, - for stdin, data URLs; of datasets mnist:test, mnist:test[0], "
    "csv:FILE, npz:FILE, idx:DIR."
)
MANY = 200  # images from which processes and a progress bar are worth their start


@options.with_network
def predict(
    network: dict[str, Any],
    images: Annotated[
        list[str],
        Argument(metavar="IMAGE...", help=IMAGES_HELP),
    ],
    checkpoint: Annotated[
        str | None, Option(help=options.CHECKPOINT_HELP, metavar="FILE", show_default="world")
    ] = None,
    multi: Annotated[
        bool | None,
        Option(
            "--multi/--single",
            help="Read every digit, line by line, or only an image of one.",
            show_default="every digit, where there are several",
        ),
    ] = None,
    recursive: Annotated[bool, Option("--recursive", help="Search subfolders, too.")] = False,
    top_k: Annotated[int, Option(min=1, help="Most probable classes to list.")] = 3,
    min_confidence: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Reject predictions less probable than this.",
            show_default="reject what does not look like a digit",
        ),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON array.")] = False,
    jsonl: Annotated[bool, Option("--jsonl", help="Print a JSON object per line.")] = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV with a header.")] = False,
    text: Annotated[
        bool, Option("--text", help="Print the reading alone, ? for what cannot be read.")
    ] = False,
    kaggle: Annotated[bool, Option("--kaggle", help="Print ImageId,Label from 1 on.")] = False,
    save_inputs: Annotated[
        Path | None, Option(help="Write the network's inputs as PNGs.", metavar="DIR")
    ] = None,
    stages: Annotated[
        Path | None, Option(help="Write the stages of preprocessing.", metavar="DIR or FILE.png")
    ] = None,
    annotate: Annotated[
        Path | None,
        Option(help="Write each image with boxes, digits and probabilities.", metavar="DIR"),
    ] = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
) -> None:
    """Read the digits in images: scans, photographs, drawings.

    An image that shows no single digit is reported as rejected (exit code 0). One
    that cannot be read is named on stderr (exit code 1), with --text each digit, too.

    Examples:
      mnist-ce predict photo.jpg
      mnist-ce predict sheet.jpg --text
      mnist-ce predict scans/ --csv > predictions.csv
      mnist-ce predict sheet.jpg --annotate marked
    """
    if json + jsonl + as_csv + text + kaggle > 1:
        raise typer.BadParameter("choose one of --json, --jsonl, --csv, --text and --kaggle")
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        from mnist_ce.data.address import images_at, parse_address
        from mnist_ce.reader.image_io import SUFFIXES, find_images
        from mnist_ce.reader.pool import PreprocessPool

        sources: list[Any] = []
        for pattern in images:
            address = parse_address(pattern)
            sources += (
                find_images([pattern], recursive=recursive)
                if address is None
                else images_at(address, data_dir)
            )
        is_file = len(sources) == 1 and str(stages).lower().endswith(".png")
        if stages is not None and stages.suffix.lower() in SUFFIXES and not is_file:
            advice = "name a folder, or for one image a file that is a .png"
            raise UsageError(f"--stages {stages}: {advice}")
        for folder in (save_inputs, annotate, None if is_file else stages):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        many = len(sources) >= MANY and address is None
        pool = PreprocessPool((threads or os.cpu_count() or 1) if many else 1)
        stack.callback(pool.close)
        pool.submit(int)  # starts a process, whose imports run beside torch's

        from PIL import Image
        from tqdm import tqdm

        from mnist_ce.prediction import drawing
        from mnist_ce.prediction.predict import DEFAULT_WEIGHTS, PredictOptions, predict_each
        from mnist_ce.runs.load_model import load_model
        from mnist_ce.runs.run_dir import shipped_weights
        from mnist_ce.system.device import use_threads

        default = None if network["model"] else shipped_weights(DEFAULT_WEIGHTS)
        trained = load_model(checkpoint or default, output, **network)
        note(_which_network(trained, output if default == trained.path else None))
        predict_options = PredictOptions(
            top_k=top_k,
            multi=multi,
            min_confidence=min_confidence,
            device=device,
            # Images that are kept take megabytes each: few at a time.
            batch_size=256 if stages is None and annotate is None else 16,
            keep_stages=stages is not None,
            keep_image=annotate is not None,
        )
        stack.enter_context(use_threads(1 if many else threads))
        contents = [sys.stdin.buffer.read() if path is None else path for path in sources]
        results = predict_each(contents, trained, predict_options, pool)
        bar = {"total": len(sources), "unit": " images", "leave": False, "dynamic_ncols": True}
        progress = tqdm(results, **bar, disable=None if many else True)
        num_printed, has_failed = 0, False
        try:
            for records in progress:
                records[:] = [replace(record, path=record.path or "-") for record in records]
                first = records[0]
                lines = drawing.describe_lines(records)
                places = [sanitize(str(first.path)) + (f" page {first.page}" if first.page else "")]
                if len(lines) > 1:
                    places = [f"{places[0]} line {number}" for number in range(1, len(lines) + 1)]
                # A file name may have 255 bytes. With the number, no name collides.
                name = os.fsencode(Path(str(first.path)).stem)[:200].decode("utf-8", "ignore")
                stem = f"{num_printed + 1:05d}-{name}"
                if first.status == "error":
                    has_failed = True
                    progress.clear()
                    error(sanitize(first.reason or ""))
                if annotate is not None and first.image is not None:
                    path = annotate / f"{stem}.png"
                    drawing.annotate(first.image, records).save(path, "PNG")
                if stages is not None and first.stages:
                    path = stages if is_file else stages / f"{stem}-stages.png"
                    drawing.draw_stages(records).save(path, "PNG")
                for record in records:
                    if save_inputs is not None and record.pixels is not None:
                        path = save_inputs / f"{stem}-{record.index}.png"
                        Image.fromarray(record.pixels).save(path)
                if kaggle:
                    head = "" if num_printed else "ImageId,Label\n"
                    echo(f"{head}{num_printed + 1},{first.label}")
                elif as_csv:
                    _print_csv(records, has_header=not num_printed)
                elif json or jsonl:
                    rows = [json_text(record.to_dict()) for record in records]
                    start = "" if jsonl else ",\n" if num_printed else "[\n"
                    echo(start + ("\n" if jsonl else ",\n").join(rows), nl=jsonl)
                elif text:
                    echo(records.text)
                    for record in records:
                        if record.status == "rejected":
                            has_failed = True
                            progress.clear()
                            digit = f", digit {(record.position or 0) + 1}" * (len(records) > 1)
                            warn(f"{places[record.line or 0]}{digit}: {record.reason}")
                else:
                    for place, (reading, probability, details) in zip(places, lines, strict=True):
                        more = f"  ({'; '.join(details)})" if details else ""
                        echo(wrap(f"{reading:>8}  {probability:>8}  {place}{more}", hanging=20))
                num_printed += 1
        finally:  # valid JSON even if an error comes between
            if json and num_printed:
                echo("\n]")
    if has_failed:
        raise typer.Exit(1)


def _which_network(trained: TrainedModel, output: str | None) -> str:
    if output is None:
        name, path, classes = trained.label, str(trained.path), trained.class_names
        is_part = trained.reads_digits and len(classes) < 10
        only = f", which knows only {', '.join(classes)}" if is_part else ""
        return f"predicting with {name if name == path else f'{name} ({path})'}{only}"
    from mnist_ce.runs.run_dir import newest_run

    line = f"predicting with the shipped weights {trained.path.parent.name}"
    newest = newest_run(Path(output))
    if newest is None or (newest[1].custom or {}).get("model"):  # only Python has its module
        return line
    run, record = newest
    accuracy = record.test_accuracy
    result = "" if accuracy is None else f", {percent(accuracy, 2)} on its test set"
    return f"{line}; the newest run is {run.name}{result}: --checkpoint latest uses it"


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Give NumPy's OpenBLAS one thread, unless the user chose: its products here are small.

    It reads the variable when it is loaded; the pool's processes inherit it.
    """
    name = "OPENBLAS_NUM_THREADS"
    is_set = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if not is_set:
            os.environ.pop(name, None)


def _print_csv(records: list[Prediction], *, has_header: bool) -> None:
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    records = [replace(record, rotation=0) for record in records]  # which has no column
    if has_header:
        table.writerow(records[0].to_dict() | {"page": None})
    for record in records:
        top_k = " ".join(f"{k.label}:{k.probability:.6f}" for k in record.top_k)
        box = " ".join(map(str, record.box or ()))
        row = record.to_dict() | {"top_k": top_k, "box": box, "page": record.page}
        table.writerow(row.values())  # None: empty
    echo(buffer.getvalue(), nl=False)

"""`mnist-ce predict`."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import csv_text, echo, error, json_text, note, wrap
from mnist_ce.system.text import percent, sanitize

if TYPE_CHECKING:
    from mnist_ce.prediction.predict import Prediction
    from mnist_ce.runs.load_model import TrainedModel

IMAGES_HELP = (
    "Files, folders, patterns, - for stdin, data URLs; of datasets mnist:test, mnist:test[0], "
    "csv:FILE, npz:FILE, idx:DIR."
)
MANY = 200  # images from which processes and a progress bar are worth their start


def predict(
    network: dict[str, Any],
    images: Annotated[list[str], Argument(metavar="IMAGE", help=IMAGES_HELP, show_default=False)],
    checkpoint: Annotated[
        str | None, Option(help=options.CHECKPOINT_HELP, show_default="world")
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
            help="Reject predictions less probable than this, from 0 to 1.",
            show_default="reject what does not look like a digit",
        ),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print one JSON array.")] = False,
    jsonl: Annotated[bool, Option("--jsonl", help="Print a JSON object per line.")] = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV with a header.")] = False,
    text: Annotated[
        bool, Option("--text", help="Print the reading alone, ? for no digit.")
    ] = False,
    kaggle: Annotated[bool, Option("--kaggle", help="Print ImageId,Label from 1 on.")] = False,
    save_inputs: Annotated[Path | None, Option(help="Write the network's inputs as PNGs.")] = None,
    stages: Annotated[Path | None, Option(help="Write the stages of preprocessing.")] = None,
    annotate: Annotated[Path | None, Option(help="Write each image, its digits marked.")] = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
) -> None:
    """Read the digits in images: scans, photographs, drawings.

    An image that shows no single digit is reported as rejected (exit code 0). One
    that cannot be read is named on stderr (exit code 1), with --text each digit, too.

    Examples:
      mnist-ce predict examples
      mnist-ce predict sheet.jpg --text
      mnist-ce predict scans/ --csv > predictions.csv
      mnist-ce predict sheet.jpg --annotate marked
    """
    formats = {
        "--json": json,
        "--jsonl": jsonl,
        "--csv": as_csv,
        "--text": text,
        "--kaggle": kaggle,
    }
    if sum(formats.values()) > 1:
        raise typer.BadParameter(f"choose one of {', '.join(formats)}")
    with contextlib.ExitStack() as stack:
        from mnist_ce.data.address import images_at, parse_address
        from mnist_ce.reader.image_io import find_images
        from mnist_ce.reader.pool import PreprocessPool

        sources: list[Any] = []
        for pattern in images:
            if address := parse_address(pattern):
                sources += images_at(address, data_dir)
            else:
                sources += find_images([pattern], recursive=recursive)
        for folder in (save_inputs, annotate, stages):
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
        results = chain.from_iterable(predict_each(contents, trained, predict_options, pool))
        bar = {"total": len(sources), "unit": " images", "leave": False, "dynamic_ncols": True}
        progress = tqdm(results, **bar, disable=None if many else True)
        num_done, has_failed = 0, False
        try:
            for records in progress:
                records[:] = [replace(record, path=record.path or "-") for record in records]
                first = records[0]
                # A file name may have 255 bytes. With the number, no name collides.
                name = os.fsencode(Path(str(first.path)).stem)[:200].decode("utf-8", "ignore")
                stem = f"{num_done + 1:05d}-{name}"
                if annotate is not None and first.image is not None:
                    drawing.annotate(first.image, records).save(annotate / f"{stem}.png", "PNG")
                if stages is not None and first.stages:
                    drawing.draw_stages(records).save(stages / f"{stem}-stages.png", "PNG")
                for record in records:
                    if save_inputs is not None and record.pixels is not None:
                        path = save_inputs / f"{stem}-{record.index}.png"
                        Image.fromarray(record.pixels).save(path)
                lines = drawing.describe_lines(records)
                place = sanitize(str(first.path)) + (f" page {first.page}" if first.page else "")
                numbers = range(1, len(lines) + 1)
                places = [f"{place} line {n}" for n in numbers] if len(lines) > 1 else [place]
                for record in records:
                    if record.status == "error" or (text and record.status == "rejected"):
                        has_failed = True
                        progress.clear()
                        digit = f", digit {(record.position or 0) + 1}" * (len(records) > 1)
                        rejected = f"{places[record.line or 0]}{digit}: " * (
                            record.status != "error"
                        )
                        error(sanitize(f"{rejected}{record.reason}"))
                if kaggle:
                    head = "" if num_done else "ImageId,Label\n"
                    echo(f"{head}{num_done + 1},{first.label}")
                elif as_csv:
                    echo(_csv(records, has_header=not num_done), nl=False)
                elif json or jsonl:
                    rows = [json_text(record.to_dict()) for record in records]
                    start = "" if jsonl else ",\n" if num_done else "[\n"
                    echo(start + ("\n" if jsonl else ",\n").join(rows), nl=jsonl)
                elif text:
                    echo(records.text)
                else:
                    for place, (reading, probability, details) in zip(places, lines, strict=True):
                        more = f"  ({'; '.join(details)})" if details else ""
                        echo(wrap(f"{reading:>8}  {probability:>8}  {place}{more}", hanging=20))
                num_done += 1
        finally:  # valid JSON even if an error comes between
            if json and num_done:
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
    if newest is None or (newest[1].custom or {}).get("model"):  # needs its --model, too
        return line
    run, record = newest
    accuracy = record.test_accuracy
    result = "" if accuracy is None else f", {percent(accuracy, 2)} on its test set"
    return f"{line}; the newest run is {run.name}{result}: --checkpoint latest uses it"


def _csv(records: list[Prediction], *, has_header: bool) -> str:
    rows = []
    for record in records:
        top_k = " ".join(f"{k.label}:{k.probability:.6f}" for k in record.top_k)
        box = " ".join(map(str, record.box or ()))
        row = replace(record, rotation=0).to_dict()  # which has no column
        rows.append(row | {"top_k": top_k, "box": box, "page": record.page})
    return csv_text([[*rows[0]] * has_header, *(row.values() for row in rows)])

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
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import error, is_terminal, note
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.text import one_line, sanitize

if TYPE_CHECKING:
    from mnist_ce.prediction.predict import Prediction
    from mnist_ce.runs.load_model import TrainedModel

MANY = 200  # images from which processes and a progress bar are worth their start


def predict(
    images: Annotated[
        list[str],
        Argument(
            metavar="IMAGE...",
            help="Images, folders, glob patterns, or - for stdin (a data URL too).",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        str | None, Option(help=options.CHECKPOINT_HELP, metavar="FILE", show_default="world")
    ] = None,
    multi: Annotated[
        bool, Option("--multi", help="Read every digit of a row or a sheet, line by line.")
    ] = False,
    recursive: Annotated[bool, Option("--recursive", help="Search subfolders, too.")] = False,
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
    annotate: Annotated[
        Path | None,
        Option(help="Write each image with boxes, digits and probabilities.", metavar="DIR"),
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
      mnist-ce predict sheet.jpg --multi --annotate marked
    """
    if json + jsonl + as_csv > 1:
        raise typer.BadParameter("choose one of --json, --jsonl and --csv")
    printers = ((json, _print_json), (jsonl, _print_json_lines), (as_csv, _print_csv))
    print_records = next((printer for wanted, printer in printers if wanted), _print_text)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        from mnist_ce.reader.image_io import find_images
        from mnist_ce.reader.pool import PreprocessPool

        sources = list(find_images(images, recursive=recursive))
        _make_folders(save_inputs, stages, annotate, is_single=len(sources) == 1)
        many = len(sources) >= MANY
        # Images that are kept take megabytes each: few at a time.
        batch_size = 256 if stages is None and annotate is None else 16
        num_processes = (threads or os.cpu_count() or 1) if many else 1
        pool = stack.enter_context(PreprocessPool(num_processes))

        from PIL import Image
        from tqdm import tqdm

        from mnist_ce.prediction import drawing
        from mnist_ce.prediction.predict import DEFAULT_WEIGHTS, PredictOptions, predict_each
        from mnist_ce.runs.load_model import load_model
        from mnist_ce.runs.run_dir import shipped_weights
        from mnist_ce.system.device import use_threads

        chosen = checkpoint or shipped_weights(DEFAULT_WEIGHTS)
        trained = load_model(chosen, output, input_mean=input_mean, input_std=input_std)
        note(_which_network(trained, output if checkpoint is None else None))
        predict_options = PredictOptions(
            top_k=top_k,
            multi=multi,
            min_confidence=min_confidence,
            device=device,
            batch_size=batch_size,
            keep_stages=stages is not None,
            keep_image=annotate is not None,
        )
        stack.enter_context(use_threads(1 if many else threads))
        contents = [sys.stdin.buffer.read() if path is None else path for path in sources]
        results = predict_each(contents, trained, predict_options, pool)
        bar = {"total": len(sources), "unit": " images", "leave": False, "dynamic_ncols": True}
        progress = tqdm(results, **bar, disable=not (many and is_terminal()))
        _tolerate_any_name()
        num_printed = num_errors = 0
        try:
            for result in progress:
                records = [_for_the_shell(record) for record in result.records]
                stem = _file_stem(num_printed + 1, str(records[0].path))
                if records[0].status == "error":
                    num_errors += 1
                    progress.clear()
                    error(sanitize(records[0].reason or ""))
                elif annotate is not None and result.image is not None:
                    page = drawing.annotate(result.image, records)
                    page.save(annotate / f"{stem}.png", "PNG")
                if stages is not None and records[0].stages:
                    is_file = stages.suffix.lower() == ".png"
                    montage = drawing.draw_stages(records[0].stages, drawing.summary(records))
                    montage.save(stages if is_file else stages / f"{stem}-stages.png", "PNG")
                for record in records:
                    if save_inputs is not None and record.pixels is not None:
                        path = save_inputs / f"{stem}-{record.index}.png"
                        Image.fromarray(record.pixels).save(path)
                print_records(records, is_first=not num_printed)
                num_printed += 1
        finally:  # valid JSON even if an error comes between
            if json and num_printed:
                sys.stdout.write("\n]\n")
            sys.stdout.flush()
    if num_errors:
        raise typer.Exit(1)


def _which_network(trained: TrainedModel, output: str | None) -> str:
    """Return which network predicts, and the newest run in `output` that could, in a line."""
    if output is None:
        name, path, classes = trained.label, str(trained.path), trained.class_names
        place = f" ({path})" if name != path else ""
        is_part = trained.reads_digits and len(classes) < 10
        only = f", which knows only {', '.join(classes)}" if is_part else ""
        return sanitize(f"predicting with {name}{place}{only}")
    from mnist_ce.runs.run_dir import newest_run

    line = f"predicting with the shipped weights {trained.path.parent.name}"
    if (newest := newest_run(Path(output))) is None:
        return line
    run, record = newest
    if (record.custom or {}).get("model"):  # only Python can give the module again
        return line
    accuracy = (
        "" if record.test_accuracy is None else f", {record.test_accuracy:.2%} on its test set"
    )
    return f"{line}; the newest run is {sanitize(run.name)}{accuracy}: --checkpoint latest uses it"


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


def _make_folders(
    save_inputs: Path | None, stages: Path | None, annotate: Path | None, *, is_single: bool
) -> None:
    from mnist_ce.reader.image_io import SUFFIXES

    suffix = "" if stages is None else stages.suffix.lower()
    is_file = is_single and suffix == ".png"
    if suffix in SUFFIXES and not is_file:
        raise UsageError(
            f"--stages {stages}: name a folder, or for one image a file that is a .png"
        )
    folders = {"--save-inputs": save_inputs, "--annotate": annotate}
    for option, folder in (folders | {"--stages": None if is_file else stages}).items():
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            reason = f"the folder cannot be made: {one_line(failure)}"
            raise RunError(f"{option} {folder}: {reason}") from None


def _for_the_shell(record: Prediction) -> Prediction:
    reason = f"{record.reason}: use --multi" if record.has_several else record.reason
    return replace(record, path=record.path or "-", reason=reason)


def _file_stem(number: int, path: str) -> str:
    name = os.fsencode(Path(path).stem)[:200]  # of 255 that a file name may have
    return f"{number:05d}-{name.decode('utf-8', 'ignore')}"  # the number: no name collides


def _print_text(records: list[Prediction], *, is_first: bool) -> None:
    path = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(records[0].path))
    lines = [list(line) for _, line in groupby(records, key=lambda record: record.line)]
    for number, line in enumerate(lines, 1):
        place = f"{path} line {number}" if len(lines) > 1 else path
        sys.stdout.write(_text_of(line, place) + "\n")


def _text_of(line: list[Prediction], place: str) -> str:
    """Return the records of a text line for people; a rejected guess has no probability."""
    first = line[0]
    accepted = [record.probability or 0.0 for record in line if record.status == "ok"]
    lowest = f"{min(accepted):.1%}" if accepted else ""
    text, details = first.class_name, first.reason
    if len(line) > 1:
        text = first.text
        details = "; ".join(f"{(r.position or 0) + 1}: {r.reason}" for r in line if r.reason)
    elif first.status == "ok":
        details = ", ".join(f"{k.class_name} {k.probability:.1%}" for k in first.top_k[1:])
    elif first.status == "error":
        text, details = "error", None  # which stderr names
    else:
        text = "-" if first.guess is None else f"({first.guess}?)"
    return f"{text:>8}  {lowest:>7}  {place}" + (f"  ({details})" if details else "")


def _print_json(records: list[Prediction], *, is_first: bool) -> None:
    for number, record in enumerate(records):
        sys.stdout.write("[\n" if is_first and not number else ",\n")
        sys.stdout.write(_json(record))


def _print_json_lines(records: list[Prediction], *, is_first: bool) -> None:
    for record in records:
        sys.stdout.write(_json(record) + "\n")


def _print_csv(records: list[Prediction], *, is_first: bool) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    if is_first:
        table.writerow(records[0].to_dict())
    for record in records:
        top_k = " ".join(f"{k.label}:{k.probability:.6f}" for k in record.top_k)
        box = " ".join(map(str, record.box or ()))
        table.writerow((record.to_dict() | {"top_k": top_k, "box": box}).values())  # None: empty


def _tolerate_any_name() -> None:
    """Let stdout print names of files that are no valid text."""
    if hasattr(sys.stdout, "reconfigure"):
        is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def _json(record: Prediction) -> str:
    """Return a record as JSON; characters that stdout cannot encode are escaped."""
    row = record.to_dict()
    text = json_module.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json_module.dumps(row, allow_nan=False)
    return text

"""`mnist-ce predict`."""

from __future__ import annotations

import codecs
import contextlib
import csv
import json as json_module
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    with one_blas_thread():
        from mnist_ce.reader.image_io import find_images
        from mnist_ce.reader.pool import PreprocessPool

        sources = list(find_images(images, recursive=recursive))
        many = len(sources) >= MANY
        with PreprocessPool((threads or os.cpu_count() or 1) if many else 1) as pool:
            from mnist_ce.prediction.predict import DEFAULT_WEIGHTS, PredictOptions, predict_each
            from mnist_ce.runs.load_model import load_model
            from mnist_ce.runs.run_dir import shipped_weights
            from mnist_ce.system.device import use_threads

            chosen = checkpoint or shipped_weights(DEFAULT_WEIGHTS)
            trained = load_model(chosen, output, input_mean=input_mean, input_std=input_std)
            note(_which_network(trained, output if checkpoint is None else None))
            settings = PredictOptions(
                top_k=top_k,
                multi=multi,
                min_confidence=min_confidence,
                device=device,
                keep_stages=stages is not None,
            )
            contents = [sys.stdin.buffer.read() if path is None else path for path in sources]
            with use_threads(1 if many else threads):
                records = predict_each(contents, trained, settings, pool)
                if save_inputs is not None or stages is not None:
                    records = _saving(records, save_inputs, stages, single=len(sources) == 1)
                if annotate is not None:
                    records = _annotating(records, contents, annotate)
                records = _with_progress(records, len(sources) if many and is_terminal() else 0)
                if not (json or jsonl or as_csv):
                    num_errors = _print_lines(records)
                else:
                    num_errors = _print(records, json=json, jsonl=jsonl, as_csv=as_csv)
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

    from mnist_ce.prediction.drawing import draw_stages, summary
    from mnist_ce.reader.image_io import SUFFIXES

    one_file = stages is not None and single and stages.suffix.lower() == ".png"
    if stages is not None and not one_file and stages.suffix.lower() in SUFFIXES:
        raise UsageError(
            f"--stages {stages}: name a folder, or for one image a file that is a .png"
        )
    for option, folder in (("--save-inputs", inputs), ("--stages", None if one_file else stages)):
        _make_folder(option, folder)
    for number, found in enumerate(_by_image(records), 1):
        stem = _file_stem(number, found[0])
        for record in found:
            if inputs is not None and record.pixels is not None:
                Image.fromarray(record.pixels).save(inputs / f"{stem}-{record.index}.png")
        if stages is not None and found[0].stages:
            path = stages if one_file else stages / f"{stem}-stages.png"
            draw_stages(found[0].stages, summary(found)).save(path, "PNG")
        yield from found


def _make_folder(option: str, folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        reason = f"the folder cannot be made: {one_line(failure)}"
        raise RunError(f"{option} {folder}: {reason}") from None


def _file_stem(number: int, record: Prediction) -> str:
    name = os.fsencode(Path(record.path or "-").stem)[:200]  # of 255 that a file name may have
    return f"{number:05d}-{name.decode('utf-8', 'ignore')}"


def _annotating(
    records: Iterator[Prediction], sources: Sequence[Path | bytes], folder: Path
) -> Iterator[Prediction]:
    """Write each image with its records drawn in, when the last of them has come."""
    from mnist_ce.prediction.drawing import annotate
    from mnist_ce.reader.image_io import open_image

    _make_folder("--annotate", folder)
    for number, (source, found) in enumerate(zip(sources, _by_image(records), strict=True), 1):
        if found[0].status != "error":
            path = folder / f"{_file_stem(number, found[0])}.png"
            annotate(open_image(source), found).save(path, "PNG")
        yield from found


def _by_image(records: Iterator[Prediction]) -> Iterator[list[Prediction]]:
    """Yield the records of each image."""
    found: list[Prediction] = []
    for record in records:
        if record.index == 0 and found:
            yield found
            found = []
        found.append(record)
    if found:
        yield found


def _print(records: Iterator[Prediction], *, json: bool, jsonl: bool, as_csv: bool) -> int:
    """Print the records as they come and return the number of errors."""
    encoding = _tolerant_stdout()
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
            else:
                if not num_printed:
                    table.writerow(row)
                box = " ".join(map(str, row["box"] or ()))
                best = (f"{k['label']}:{k['probability']:.6f}" for k in row["top_k"])
                table.writerow(
                    (row | {"top_k": " ".join(best), "box": box}).values()
                )  # None: empty
            num_printed += 1
    finally:  # valid JSON even if an error comes between
        if json and num_printed:
            sys.stdout.write("\n]\n")
        sys.stdout.flush()
    return num_errors


def _tolerant_stdout() -> str:
    """Let stdout print names of files that are no valid text, and return its encoding."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    if hasattr(sys.stdout, "reconfigure"):
        errors = "surrogateescape" if encoding == "utf-8" else "backslashreplace"
        sys.stdout.reconfigure(errors=errors)
    return encoding


def _json(row: dict[str, Any], encoding: str) -> str:
    """Return a record as JSON; characters that the output cannot encode are escaped."""
    text = json_module.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json_module.dumps(row, allow_nan=False)
    return text


def _print_lines(records: Iterator[Prediction]) -> int:
    """Print a line of text for each text line of an image, and return the number of errors."""
    _tolerant_stdout()
    num_errors = 0
    for found in _by_image(records):
        path = "".join(c if c.isprintable() else repr(c)[1:-1] for c in found[0].path or "-")
        num_errors += found[0].status == "error"
        lines = [list(line) for _, line in groupby(found, key=lambda record: record.line)]
        for line in lines:
            place = f" line {(line[0].line or 0) + 1}" if len(lines) > 1 else ""
            sys.stdout.write(_line(line, path + place) + "\n")
    sys.stdout.flush()
    return num_errors


def _line(records: list[Prediction], place: str) -> str:
    """Return the records of a text line for people; a rejected guess has no probability."""
    first = records[0]
    if len(records) > 1:
        accepted = [
            r.probability for r in records if r.status == "ok" and r.probability is not None
        ]
        least = f"{min(accepted):7.1%}" if accepted else f"{'':7}"
        reasons = [
            f"{r.position + 1}: {r.reason}" for r in records if r.reason and r.position is not None
        ]
        more = f"  ({'; '.join(reasons)})" if reasons else ""
        return f"{first.text:>8}  {least}  {place}{more}"
    if first.status == "error":
        return f"{'error':>8}           {place}"
    if first.status == "ok":
        others = ", ".join(f"{k.class_name} {k.probability:.1%}" for k in first.top_k[1:])
        more = f"  ({others})" if others else ""
        return f"{first.class_name:>8}  {first.probability:7.1%}  {place}{more}"
    guess = "-" if first.guess is None else f"({first.guess}?)"
    return f"{guess:>8}           {place}  ({first.reason})"

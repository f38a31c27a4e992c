"""The HTML of a report: plain values in, one self-contained page out.

Everything that a run's files say is escaped, and the page's own policy forbids scripts and any
address but itself, so a run folder from a stranger can be looked at.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mnist_ce.config import Config
from mnist_ce.evaluation.metrics import wilson_interval
from mnist_ce.runs.records import RunRecord

__all__ = ["PICTURES", "ReportedRun", "report_page"]

PICTURES = {
    "curves": "Train results are taken while the weights still change, each image before its own "
    "step; test and validation results after the epoch.",
    "confusion_matrix": "Rows are the truth, columns the answers. Colour is an error's share of "
    "the images of its true class.",
    "mistakes": "The test images that were answered wrongly with the highest probability.",
    "weights": "Each square shows the weights from the 28 × 28 pixels to one unit of the first "
    "layer.",
    "calibration": "On the diagonal, answers given with 90 % are right nine times in ten.",
}
"""The pictures of a run, by file name without `.png`, with what is to be said about each."""

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: #fff; color: #1b1b1b;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 3rem; font-size: 1.3rem; }
h3 { margin: 2rem 0 .5rem; font-size: 1.05rem; }
.scroll { overflow-x: auto; }
.scroll img { display: block; height: auto; max-width: max(100%, 38rem); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #d8d8d8; text-align: left;
  vertical-align: top; overflow-wrap: normal; }
td.number, th.number { text-align: right; white-space: nowrap; }
td:first-child { overflow-wrap: anywhere; min-width: 8rem; }
figure { margin: 1.5rem 0; } figcaption { color: #595959; font-size: .9rem; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; padding: .8rem; background: #f4f4f4; font-size: .85rem;
  overflow-wrap: normal; }
"""


@dataclass(frozen=True)
class ReportedRun:
    """What a report says of one run.

    Args:
        name: The run's name.
        record: What `run.json` holds.
        rows: What `metrics.csv` holds.
        config: The text of `config.toml`.
        pictures: PNG files by name, see `PICTURES`.
    """

    name: str
    record: RunRecord
    rows: Sequence[Mapping[str, Any]]
    config: str
    pictures: Mapping[str, bytes]


def report_page(runs: Sequence[ReportedRun], overlay: bytes | None) -> str:
    """Return the report as HTML that needs nothing but itself.

    Args:
        runs: The runs, in the order in which they are shown.
        overlay: A PNG file of all runs' curves; None for one run.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [f"<h1>{escape(title)}</h1>", "<h2>Results</h2>", _results(runs)]
    if overlay is not None:
        parts += [_picture("Curves of all runs", overlay, ""), _differences(runs)]
    for run in runs:
        parts.append(_run(run, with_heading=len(runs) > 1))
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)} · mnist-ce</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _results(runs: Sequence[ReportedRun]) -> str:
    head = ("run", "accuracy", "right", "95 % interval", "loss", "epochs", "time", "data", "recipe")
    rows = []
    for run in runs:
        correct, total = run.record.test_correct, run.record.test_total
        accuracy = right = interval = "–"
        if correct is not None and total is not None and 0 <= correct <= total > 0:
            low, high = wilson_interval(correct, total)
            accuracy = f"{100 * correct / total:.2f} %"
            right = f"{correct:,} of {total:,}"
            interval = f"{100 * low:.2f} to {100 * high:.2f} %"
        rows.append(
            (
                *(run.name, accuracy, right, interval),
                _number(run.record, "test_loss", "{:.4f}"),
                len(run.rows),
                _number(run.record, "train_seconds", "{:.1f} s"),
                run.record.dataset or "–",
                run.record.recipe or "–",
            )
        )
    note = "<p>On the test split; the interval is Wilson's.</p>"
    return note + _table(head, rows, numbers=range(1, 7))


def _differences(runs: Sequence[ReportedRun]) -> str:
    """The settings in which the runs differ."""
    settings = [_settings(run.record) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one if not key.startswith("run."))
    rows = [
        (key, *(one.get(key, "–") for one in settings))
        for key in keys
        if len({one.get(key, "–") for one in settings}) > 1
    ]
    if not rows:
        return "<p>The runs have equal settings.</p>"
    head = ("setting", *(run.name for run in runs))
    return f"<h3>Settings in which the runs differ</h3>{_table(head, rows)}"


def _run(run: ReportedRun, *, with_heading: bool) -> str:
    parts = [f"<h2>{escape(run.name)}</h2>"] if with_heading else []
    status = run.record.status
    if status != "finished":
        parts.append(f"<p>This run is not finished (status: {escape(str(status))}).</p>")
    parts += [
        _picture(f"{name.replace('_', ' ')} of {run.name}", run.pictures[name], note)
        for name, note in PICTURES.items()
        if name in run.pictures
    ]
    parts += [
        _details("Epochs", _epochs(run.rows)),
        _details("Settings that differ from the defaults", _changed(run.record)),
        _details("Whole config", f"<pre>{escape(run.config)}</pre>"),
        _details("Environment", _environment(run.record)),
    ]
    return "\n".join(parts)


def _epochs(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>None is done.</p>"
    columns = [key for key in rows[0] if any(row.get(key) is not None for row in rows)]
    shown = [
        ["–" if row.get(key) is None else f"{row[key]:.6g}" for key in columns] for row in rows
    ]
    return _table([key.replace("_", " ") for key in columns], shown, numbers=range(len(columns)))


def _changed(record: RunRecord) -> str:
    defaults = _settings(RunRecord(config=Config().to_dict()))
    rows = [
        (key, value, defaults.get(key, "–"))
        for key, value in _settings(record).items()
        if value != defaults.get(key)
    ]
    return _table(("setting", "here", "default"), rows) if rows else "<p>None.</p>"


def _environment(record: RunRecord) -> str:
    keys = (
        *("created", "device", "threads", "step", "seed", "num_parameters", "git_commit"),
        *("dataset_digest", "weights_sha256", "command"),
    )
    rows = [(key.replace("_", " "), record[key]) for key in keys if record[key] is not None]
    rows += list((record.versions or {}).items())
    return _table(("", ""), [(key, _plain(value)) for key, value in rows])


def _settings(record: RunRecord) -> dict[str, str]:
    """Return a record's config as texts by dotted key."""
    return {key: _plain(value) for key, value in record.flat_config.items()}


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"


def _number(record: RunRecord, key: str, form: str) -> str:
    return "–" if record[key] is None else form.format(record[key])


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _table(
    head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Collection[int] = ()
) -> str:
    """Return a table; the columns in `numbers` are set to the right."""

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numbers else ''}>{escape(str(value))}</{tag}>"
            for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    header = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return f'<div class="scroll" tabindex="0"><table>{header}<tbody>{body}</tbody></table></div>'


def _picture(text: str, content: bytes, note: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return (
        f'<figure><div class="scroll" tabindex="0"><img src="{source}" '
        f'alt="{escape(text)}"></div>'
        f"<figcaption>{escape(note)}</figcaption></figure>"
    )

"""`mnist-ce report`."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options


def report(
    runs: Annotated[
        list[str] | None,
        Argument(
            metavar="[RUN]...",
            help="Names or folders of runs. Default: the newest finished run.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        Option(
            help="The HTML file to write.",
            show_default="report.html in the run's folder, or in the runs' for several",
            metavar="FILE",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
) -> None:
    """Redraw the plots of runs and show them in one HTML file.

    Examples:
      mnist-ce report
      mnist-ce report first-run second-run --file comparison.html
    """
    from mnist_ce.report.report import report as run_report

    path = run_report(runs or (), output=output, data_dir=data_dir, file=file)
    typer.echo(str(path))

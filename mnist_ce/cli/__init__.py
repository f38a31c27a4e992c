"""The command line: parse, call, print, exit code. Nothing here imports torch by itself."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from mnist_ce.cli import (
    calibrate,
    compare,
    evaluate,
    explain,
    export,
    predict,
    report,
    runs,
    train,
)
from mnist_ce.cli.help import GroupedCommand
from mnist_ce.cli.options import Traceback, Traceback_, label, logging_to_terminal
from mnist_ce.system.errors import MainProcessFailedError, MnistCeError
from mnist_ce.system.files import one_line

__all__ = ["app", "main"]

app = typer.Typer(
    name="mnist-ce",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    help="Train, evaluate and use one small network on MNIST.",
)
for command in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    explain.explain,
    compare.compare,
    calibrate.calibrate,
    runs.runs,
    report.report,
    export.export,
):
    app.command(command.__name__, cls=GroupedCommand)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from mnist_ce.system.files import version

        typer.echo(f"mnist-ce {version()}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Train, evaluate and use one small network on MNIST."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done; 1 the work failed; 2 the command or config is wrong; 128 + n stopped by signal n.

    Args:
        arguments: What stands after `mnist-ce`; None: the process's own.
    """
    Traceback_.wanted = False
    try:
        with logging_to_terminal():
            app(args=None if arguments is None else list(arguments), prog_name="mnist-ce")
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except MainProcessFailedError as error:
        return error.exit_code  # the main process says why
    except MnistCeError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{one_line(error)}", 1)
    return 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def _fail(message: str, exit_code: int) -> int:
    if Traceback_.wanted:
        traceback.print_exc()
    # a name may hold a line break
    typer.echo(f"{label('error:', 'red')} {' '.join(message.splitlines())}", err=True)
    sys.stdout.flush()
    return exit_code

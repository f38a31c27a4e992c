"""The command line: its commands, its exit codes, and its error messages.

Neither this module nor those it imports need torch or NumPy.
"""

from __future__ import annotations

import sys
import traceback as python_traceback
from collections.abc import Sequence
from dataclasses import dataclass
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
from mnist_ce.cli.options import GroupedCommand
from mnist_ce.cli.printing import error, logging_to_terminal
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


@dataclass
class Invocation:
    """What one call of the program is to do beside its command; the root context's `obj`."""

    shows_traceback: bool = False


def _print_version(is_given: bool) -> None:
    if is_given:
        from mnist_ce.system.files import version

        typer.echo(f"mnist-ce {version()}")
        raise typer.Exit


def _show_traceback(ctx: typer.Context, is_given: bool) -> None:
    if is_given and isinstance(ctx.obj, Invocation):
        ctx.obj.shows_traceback = True


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            expose_value=False,  # `GroupedCommand` adds the option to the commands, too
            callback=_show_traceback,
            help="Show where in the code an error arose.",
        ),
    ] = False,
) -> None:
    """Train, evaluate and use one small network on MNIST."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: the work failed; 2: the command or config is wrong; 128 + n: stopped by signal n.

    Args:
        arguments: The command line after `mnist-ce`; None: that of this process.
    """
    invocation = Invocation()

    def fail(message: str, exit_code: int) -> int:
        if invocation.shows_traceback:
            python_traceback.print_exc()
        error(" ".join(message.splitlines()))  # a file name may contain line breaks
        sys.stdout.flush()
        return exit_code

    try:
        with logging_to_terminal():
            words = None if arguments is None else list(arguments)
            app(args=words, prog_name="mnist-ce", obj=invocation)
    except SystemExit as end:
        if end.code is None:
            return 0
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except MainProcessFailedError as failure:
        return failure.exit_code  # the main process prints the reason
    except MnistCeError as failure:
        return fail(str(failure), failure.exit_code)
    except OSError as failure:
        if type(failure) is OSError and failure.errno is None:  # not the system's: a bug
            raise
        place = f"{failure.filename}: " if failure.filename else ""
        return fail(f"{place}{one_line(failure)}", 1)
    return 0

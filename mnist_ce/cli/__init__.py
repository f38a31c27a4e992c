"""The command line: its commands, its exit codes, and its error messages.

Neither this module nor those it imports need torch or NumPy.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from platform import python_version
from typing import Annotated

import typer
from typer import Option

from mnist_ce.cli import demo, evaluate, explain, predict, runs, train
from mnist_ce.cli.options import TRACEBACK, ClickError, Command, usage_message, with_network
from mnist_ce.cli.printing import echo, error, note, printing
from mnist_ce.system.distributed import is_main
from mnist_ce.system.errors import MnistCeError, StoppedError
from mnist_ce.system.files import expand_home, version
from mnist_ce.system.text import one_line

__all__ = ["app", "main"]

app = typer.Typer(
    name="mnist-ce",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
for command in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    explain.explain,
    evaluate.compare,
    runs.calibrate,
    runs.runs,
    runs.report,
    runs.export,
    train.tune,
    demo.demo,
):
    # \b keeps click from joining the examples to one paragraph.
    help_text = re.sub(r"\n( *)(Examples|For example):", r"\n\1\b\n\1\2:", command.__doc__ or "")
    app.command(
        command.__name__,
        cls=Command,
        help=help_text,
        short_help=help_text.partition("\n")[0],  # whole in the list of commands, where click cuts
        no_args_is_help=command is train.tune,  # its defaults would train one run
        epilog=f"{TRACEBACK} shows where in the code an error arose.",
    )(with_network(command))


def _print_version(is_given: bool) -> None:
    if is_given:
        packages = {name: metadata.version(name) for name in ("torch", "torchvision")}
        for name, number in {"mnist-ce": version(), **packages, "Python": python_version()}.items():
            echo(f"{name:<12} {number}")
        raise typer.Exit


@app.callback()
def program(
    is_version_asked: Annotated[
        bool, Option("--version", is_eager=True, callback=_print_version, help="Print versions.")
    ] = False,
) -> None:
    """Read handwritten digits, and see how a network learns to.

    \b
    Begin with:
      mnist-ce predict examples   read four images that come with the program
      mnist-ce demo               draw digits, and see what the network does
      mnist-ce train              train a network of your own
    """  # noqa: D301


def _without_home(word: str) -> str:
    """Replace `~` in a value such as that of `--output=~/runs`, where no shell does."""
    option = word[: word.find("=") + 1] if word.startswith("--") else ""
    return option + expand_home(word.removeprefix(option))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: the work failed; 2: the command or config is wrong; 128 + n: stopped by signal n.
    `arguments` is the command line after `mnist-ce`; None: that of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments

    def fail(message: str, exit_code: int, show: Callable[[str], None] = error) -> int:
        if TRACEBACK in arguments:
            note(traceback.format_exc())
        if is_main():  # the other processes of a run have the same error, or follow its end
            show(message)
        sys.stdout.flush()
        return exit_code

    try:
        with printing():
            words = [_without_home(word) for word in arguments if word != TRACEBACK]
            code = app(words, prog_name="mnist-ce", standalone_mode=False)
            return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ClickError as failure:
        if "Usage: " in str(failure):  # without a command: the program's help
            note(str(failure))
            return 2
        return fail(usage_message(failure), 2)
    except typer.Abort:
        return fail("stopped", 1, note)
    except StoppedError as end:  # by the user: no error
        return fail(str(end), end.exit_code, note)
    except MnistCeError as failure:
        return fail(str(failure), failure.exit_code)
    except OSError as failure:
        if type(failure) is OSError and failure.errno is None:  # not the system's: a bug
            raise
        place = f"{failure.filename}: " if failure.filename else ""
        return fail(f"{place}{one_line(failure)}", 1)

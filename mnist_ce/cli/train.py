"""`mnist-ce train`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import textwrap
import tomllib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json
from mnist_ce.system.distributed import is_main

if TYPE_CHECKING:  # pydantic, below, takes as long as all the rest
    from mnist_ce.config import Config, Section


def train(
    config: Annotated[str | None, Option("-c", "--config", help=options.CONFIG_HELP)] = None,
    epochs: Annotated[int | None, Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, Option("-b", "--batch-size", help="Images per step.")] = None,
    lr: Annotated[float | None, Option(help="Learning rate.")] = None,
    momentum: Annotated[float | None, Option(help="Momentum.")] = None,
    init: Annotated[str | None, Option(help="Initial weights, as in evaluate.")] = None,
    model: options.Model = None,
    seed: Annotated[int | None, Option(help="Fixes everything random.")] = None,
    assignments: options.Assignments = None,
    dataset: Annotated[str | None, Option(help=options.DATASETS)] = None,
    data_dir: options.DataDir = None,
    mirror: Annotated[str | None, Option(help="The only address to download from.")] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    threads: Annotated[int | None, Option(help="CPU threads; 0: as torch chooses.")] = None,
    step: Annotated[str | None, Option(help="auto, plain or fast.")] = None,
    output: Annotated[str | None, Option(help="Folder that holds the runs.")] = None,
    name: Annotated[str | None, Option(help="The run's name.")] = None,
    resume: Annotated[
        str | None, Option(help="Continue a run; 'latest': the newest unfinished.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="One batch of all; keep nothing.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write events for it.")] = False,
    live: Annotated[bool, Option("--live", help="Open a page that shows the run.")] = False,
    no_browser: Annotated[bool, Option("--no-browser", help="--live: print the address.")] = False,
    show_config: Annotated[
        bool, Option("--show-config", help="Print recipes and all settings, explained, as TOML.")
    ] = False,
    json: options.Json = False,
    verbose: Annotated[bool, Option("--verbose", help="A line per log_interval batches.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Only the result.")] = False,
) -> None:
    """Train the network and keep the run.

    Without options: MNIST, the classic recipe, 9 epochs.

    Examples:
      mnist-ce train
      mnist-ce train --epochs 1 --lr 0.05 --set optimizer.nesterov=true
      mnist-ce train --resume latest
    """
    arguments = locals()
    from mnist_ce.config import parse_assignments, recipe_name, resolve_config

    settings: dict[str, Any] = {key: arguments[name] for name, key in options.CONFIG_KEYS.items()}
    settings |= parse_assignments(assignments or [])
    if resume is not None and (config is not None or show_config):
        raise typer.BadParameter("--resume takes the config.toml of the run")
    resolved = recipe = None
    if resume is None:  # wrong settings are reported before torch is imported
        resolved, recipe = resolve_config(config, flags=settings), recipe_name(config)
        if show_config:
            echo(config_text(resolved), nl=False)
            return

    from mnist_ce.cli import terminal as on_terminal
    from mnist_ce.training.callbacks import Callback, ProgressCallback
    from mnist_ce.training.trainer import train as run_training

    if quiet:
        logging.getLogger("mnist_ce").setLevel(logging.WARNING)
    callbacks: list[Callback] = [ProgressCallback(verbose=verbose)]
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(on_terminal.stop_on_signals())
        if tensorboard:
            from mnist_ce.training.tensorboard import TensorBoardCallback

            callbacks.append(TensorBoardCallback())
        if live and is_main():
            callbacks.append(on_terminal.LivePage(opens_browser=not no_browser))
        result = run_training(
            resolved,
            None if resume is None else settings,
            model=model,
            resume=resume,
            dry_run=dry_run,
            recipe=recipe,
            callbacks=callbacks,
            stop=stop,
            progress=False,  # has its callback, and `main` prints the log
        )
    if not is_main():
        return
    if json:
        print_json(result.record.to_dict())
    elif dry_run:
        echo("dry run: one batch trained, tested, saved and loaded again; nothing is kept")
    else:
        echo("\n".join(result.lines()))
    if not dry_run:
        note(f"kept in {result.run.path}")
        if not quiet and not json:
            on_terminal.print_next_steps(result)


def config_text(config: Config) -> str:
    """Return a config as TOML, in which the recipes and the meanings of keys are comments."""
    import tomli_w

    from mnist_ce.config import shipped_configs

    recipes = shipped_configs()
    width = max(map(len, recipes), default=0)
    parts = ["# Shipped recipes, for: mnist-ce train --config NAME"]
    for name, path in recipes.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        sentence, stop, _ = " ".join(line.lstrip("# ") for line in comment).partition(". ")
        parts.append(_comment(f"{name:<{width}}  {sentence}{stop.strip()}", width + 2))
    for name in type(config).model_fields:
        section: Section = getattr(config, name)
        parts += ["", _comment(type(section).__doc__ or ""), f"[{name}]"]
        for key, field in type(section).model_fields.items():
            value = tomli_w.dumps({key: section.model_dump(mode="json")[key]}).strip()
            if "\n" in value:  # tomli_w writes each element of a list in a line of its own
                value = f"{key} = [{', '.join(map(str, tomllib.loads(value)[key]))}]"
            parts += [_comment(field.description or ""), value]
    return "\n".join(parts) + "\n"


def _comment(text: str, hanging: int = 0) -> str:
    lines = textwrap.wrap(text, 78, subsequent_indent=" " * hanging, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)

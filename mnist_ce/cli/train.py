"""`mnist-ce train` and `tune`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json, print_table, printing
from mnist_ce.cli.runs import print_groups
from mnist_ce.system.distributed import is_main
from mnist_ce.system.errors import MnistCeError, StoppedError, TrainingError, UsageError, require
from mnist_ce.system.text import percent, short

if TYPE_CHECKING:  # pydantic, below, takes as long as all the rest
    from mnist_ce.config import Config, Section
    from mnist_ce.training.callbacks import StopFlag
    from mnist_ce.training.tune import Plan, TuneResult


def train(
    config: Annotated[str | None, Option("-c", "--config", help=options.CONFIG_HELP)] = None,
    # Help and defaults of these are those of the keys of the config that they set.
    train_epochs: Annotated[int | None, Option("--epochs")] = None,
    train_batch_size: Annotated[int | None, Option("-b", "--batch-size")] = None,
    optimizer_learning_rate: Annotated[float | None, Option("--lr")] = None,
    optimizer_momentum: Annotated[float | None, Option("--momentum")] = None,
    train_init: Annotated[str | None, Option("--init")] = None,
    model: options.Model = None,
    train_seed: Annotated[int | None, Option("--seed")] = None,
    assignments: options.Assignments = None,
    data_dataset: Annotated[str | None, Option("--dataset")] = None,
    data_dir: str | None = None,
    data_mirror: Annotated[str | None, Option("--mirror")] = None,
    train_device: Annotated[str | None, Option("--device")] = None,
    train_threads: Annotated[int | None, Option("--threads")] = None,
    train_step: Annotated[str | None, Option("--step")] = None,
    run_output: Annotated[str | None, Option("--output")] = None,
    run_name: Annotated[str | None, Option("--name")] = None,
    resume: Annotated[
        str | None, Option(help="Continue a run; 'latest': the newest unfinished.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="One batch of all; keep nothing.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write its events, too.")] = False,
    live: Annotated[bool, Option("--live", help="Open a page of the run.")] = False,
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
    arguments = locals().items()
    from mnist_ce.config import Config, parse_assignments, recipe_name, resolve_config

    keys = Config().flat()
    settings = {k: value for name, value in arguments if (k := options.config_key(name)) in keys}
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
    from mnist_ce.training.callbacks import Callback, ProgressCallback, TensorBoardCallback
    from mnist_ce.training.trainer import train as run_training

    if quiet:
        logging.getLogger("mnist_ce").setLevel(logging.WARNING)
    callbacks: list[Callback] = [ProgressCallback(verbose=verbose)]
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(on_terminal.stop_on_signals())
        if tensorboard:
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


def tune(
    config: Annotated[
        list[str] | None, Option("-c", "--config", help="Recipes or TOML files: fast,99.")
    ] = None,
    seeds: Annotated[str, Option(help="Seeds of each setting: 0-4, or 0,1,7.")] = "0",
    grid: Annotated[
        list[str] | None, Option(help="Every value of a key; repeat it for more keys.")
    ] = None,
    search: Annotated[str | None, Option(help="A file of ranges and choices, as above.")] = None,
    trials: Annotated[int, Option(min=1, help="Trials of the search.")] = 20,
    assignments: options.Assignments = None,
    dataset: Annotated[str | None, Option(help="As for train.", show_default="auto")] = None,
    data_dir: options.DataDir = None,
    device: Annotated[str | None, Option(help="As for train.", show_default="auto")] = None,
    threads: Annotated[
        int, Option(min=0, help="CPU threads of all jobs together.", show_default="all cores")
    ] = 0,
    jobs: Annotated[int, Option(min=1, help="Processes on this machine.")] = 1,
    storage: Annotated[
        str | None, Option(help="Optuna's database for a search without a common --output.")
    ] = None,
    name: Annotated[str | None, Option(help="Name of the search and of its runs.")] = None,
    output: options.Output = "checkpoints",
    json: options.Json = False,
) -> None:
    """Train many runs: recipes, seeds, a grid, or a search by Optuna.

    The same command, started again or elsewhere with the same --output, shares the
    work, and goes on with what a killed process left. A search chooses on the
    validation split; only the chosen setting is tested, once per seed.

    Examples:
      mnist-ce tune --config fast,99 --seeds 0-4
      mnist-ce tune -c fast --grid optimizer.learning_rate=0.05,0.1,0.2 --jobs 2
      mnist-ce tune --search space.toml --trials 50 --set data.validation_size=5000

    For example:
      # space.toml, a file for --search
      [optimizer]
      learning_rate = { low = 0.01, high = 0.5, log = true }
      momentum = [0.5, 0.9, 0.95]
      [model]
      hidden = [[128], [256, 128]]
    """
    from mnist_ce.config import parse_assignments
    from mnist_ce.training.tune import Plan, parse_grid, parse_seeds, plan_runs

    if jobs > 1:
        threads = max((threads or os.cpu_count() or 1) // jobs, 1)
    settings: dict[str, Any] = {"data.dataset": dataset, "data.dir": data_dir}
    settings |= {"train.device": device, "train.threads": threads, "run.output": output}
    settings |= parse_assignments(assignments or [])
    configs = [part for text in config or ["default"] for part in text.split(",")]
    if search and (grid or len(configs) > 1):
        raise UsageError("--search is for one --config, and not together with --grid")
    runs = plan_runs(configs, settings, parse_grid(grid or []), parse_seeds(seeds))
    space = {}
    if search:
        require("optuna", extra="tune")
        from mnist_ce.training.search import read_space

        space = read_space(search)
    plan = Plan(runs, space, trials, name or "", storage, jobs)
    if grid and not runs[0].settings["data.validation_size"]:
        note("to choose among these, measure on a split: --set data.validation_size=5000")

    from mnist_ce.cli.terminal import stop_on_signals

    try:
        with stop_on_signals() as stop, _other_processes(plan):
            result = _train(plan, stop)
    except StoppedError as stopped:
        message = "stopped; to continue, repeat this mnist-ce tune command"
        raise StoppedError(message, stopped.signal_number) from None
    if json:
        print_json(result.to_dict())
    else:
        if (chosen := result.chosen) is not None:
            _print_trials(result)
            echo(
                f"{len(result.trials)} trials: {result.count('complete')} complete, "
                f"{result.count('pruned')} pruned, {result.count('fail')} failed\n"
                f"chosen on the validation split ({percent(chosen['validation_accuracy'], 2)}): "
                f"{result.study}-{chosen['chosen_trial']}"
            )
            for key, value in chosen["settings"].items():
                echo(f"  {key} = {value}")
        print_groups(result.groups)
        place = "" if output == "checkpoints" else f"{output}/"
        names = [shlex.quote(place + name) for group in result.groups for name in group.names]
        if names:
            note(f"next, their curves and errors on one page:\n  mnist-ce report {' '.join(names)}")
        if names and chosen is not None:
            path = f"{runs[0].settings['run.output']}/{result.groups[0].names[0]}/config.toml"
            words = f"mnist-ce train --config {shlex.quote(path)} --set data.validation_size=0"
            note(f"and a run with the chosen values, on all training images:\n  {words}")
    if not search and (num_failed := result.count("fail")):
        raise TrainingError(f"{num_failed} of {len(result.trials)} runs failed; see above")


def _print_trials(result: TuneResult) -> None:
    """Print the trials of a search with their values, best first."""
    keys = list(result.trials[0]["settings"])
    rows = [["trial", *(key.rpartition(".")[2] for key in keys), "validation", "state"]]
    trials = sorted(result.trials, key=lambda trial: -(trial["validation_accuracy"] or 0.0))
    for trial in sorted(trials, key=lambda trial: trial["state"] != "complete"):
        accuracy = trial["validation_accuracy"]
        values = [short(trial["settings"][key]) for key in keys]
        text = "-" if accuracy is None else percent(accuracy, 2)
        rows.append([trial["run"], *values, text, trial["state"]])
    print_table(rows, "<" + ">" * len(keys) + "><")
    echo()


def _train(plan: Plan, stop: StopFlag) -> TuneResult:
    if plan.space:
        from mnist_ce.training.search import search as train_runs
    else:
        from mnist_ce.training.tune import tune as train_runs
    return train_runs(plan, stop)


@contextlib.contextmanager
def _other_processes(plan: Plan) -> Iterator[None]:
    """Train a plan in other processes, too, which save their runs when this one is stopped."""
    from mnist_ce.system.subprocesses import sigint_blocked, start_process

    processes = []
    try:
        with sigint_blocked():  # until all of them are known here, to be ended
            for _ in range(1, plan.jobs):
                processes.append(start_process(_train_apart, plan))
        yield
    except BaseException:
        for process in processes:
            process.terminate()  # SIGTERM
        raise
    finally:
        for process in processes:
            process.communicate()


def _train_apart(plan: Plan) -> None:
    from mnist_ce.cli.terminal import stop_on_signals

    # The starting process meets the same error, and prints it.
    with printing(), stop_on_signals() as stop, contextlib.suppress(MnistCeError):
        _train(plan, stop)

"""`mnist-ce calibrate`."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import note, print_json


def calibrate(
    run: Annotated[
        str,
        Argument(
            metavar="RUN",
            help="The run that gets a temperature: its name or folder.",
            show_default=False,
        ),
    ],
    held_out: Annotated[
        list[str] | None,
        Option(
            "--with",
            help="A run on whose held-out images it is fitted; may be repeated.",
            show_default="the run itself",
            metavar="RUN",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    threads: options.Threads = 0,
    json: options.Json = False,
) -> None:
    """Fit a temperature, so that probabilities are accuracies.

    90 % of predictions with a probability of 90 % are then right: predict divides
    the run's logits by it; no prediction changes. It is fitted to
    held-out images: those of the run itself or, for a run that was trained on all
    images, those of other runs of the same recipe.

    Examples:
      mnist-ce train --config fast --name all
      mnist-ce train --config fast --name some --set data.validation_size=5000
      mnist-ce calibrate all --with some
    """
    from mnist_ce.evaluation.temperature_scaling import calibrate as run_calibration
    from mnist_ce.system.device import use_threads

    with use_threads(threads):
        run_dir, calibration = run_calibration(
            run, held_out or (), data_dir=data_dir, output=output
        )
    if json:
        print_json(calibration.model_dump(exclude_unset=True))
    else:
        fitted = calibration.fitted_on or {}
        names = ", ".join(source["run"] for source in fitted["runs"])
        typer.echo(
            f"temperature {calibration.temperature:.4f}, fitted to {fitted['num_images']:,} "
            f"held-out images of {fitted['dataset']} by {names}"
        )
        typer.echo(f"NLL there   {fitted['nll_uncalibrated']:.4f} → {fitted['nll']:.4f}")
    note(f"written to {run_dir.record_path}")

"""`mnist-ce calibrate`."""

from __future__ import annotations

import typer

from mnist_ce.cli.printing import note, print_json


def calibrate(
    run: str,
    held_out: list[str] | None = None,
    data_dir: str | None = None,
    output: str = "checkpoints",
    threads: int = 0,
    json: bool = False,
) -> None:
    """Fit a temperature, so that 90 % of predictions with a probability of 90 % are right.

    predict divides the run's logits by it; no prediction changes. It is fitted to
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
        calibrated = run_calibration(run, held_out or (), data_dir=data_dir, output=output)
    if json:
        print_json(calibrated.to_dict())
    else:
        fitted = calibrated.fitted_on
        names = ", ".join(source["run"] for source in fitted["runs"])
        typer.echo(
            f"temperature {calibrated.temperature:.4f}, fitted to {fitted['num_images']:,} "
            f"held-out images of {fitted['dataset']} by {names}"
        )
        typer.echo(f"NLL there   {fitted['nll_uncalibrated']:.4f} → {fitted['nll']:.4f}")
    note(f"written to {calibrated.run.record_path}")

"""`mnist-ce calibrate`, `export` and `report`: what is made from a finished run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from typer import Argument, Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import echo, note, print_json


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
        echo(
            f"temperature {calibration.temperature:.4f}, fitted to {fitted['num_images']:,} "
            f"held-out images of {fitted['dataset']} by {names}\n"
            f"NLL there   {fitted['nll_uncalibrated']:.4f} → {fitted['nll']:.4f}"
        )
    note(f"written to {run_dir.record_path}")


def export(
    checkpoint: options.CheckpointArgument = None,
    file: Annotated[
        str | None,
        Option(
            help="The ONNX file to write.",
            show_default="the run's name with .onnx, in this folder",
            metavar="FILE",
        ),
    ] = None,
    dataset: options.OtherDataset = None,
    data_dir: options.DataDir = None,
    output: options.Output = "checkpoints",
    input_mean: options.InputMean = 0.0,
    input_std: options.InputStd = 1.0,
    json: options.Json = False,
) -> None:
    """Write a network as an ONNX file, checked against torch.

    Nothing is written unless ONNX Runtime gives the same predictions as torch
    on 1,000 test images. (Packages: pip install 'mnist-ce[export]')

    Examples:
      mnist-ce export
      mnist-ce export my-run --file digits.onnx
    """
    from mnist_ce.report.onnx import export as run_export
    from mnist_ce.runs.load_model import load_model

    trained = load_model(checkpoint, output, input_mean=input_mean, input_std=input_std)
    result = run_export(trained, file=file, dataset=dataset, data_dir=data_dir)
    note(f"checkpoint {result.checkpoint}")
    if json:
        print_json(asdict(result))
        return
    echo(
        f"{result.path}  {result.num_bytes:,} bytes\n"
        f"equal predictions on {result.num_checked:,} test images, "
        f"logits within {result.max_difference:.1e}"
    )


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

    echo(str(run_report(runs or (), output=output, data_dir=data_dir, file=file)))

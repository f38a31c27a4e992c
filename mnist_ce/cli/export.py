"""`mnist-ce export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from typer import Option

from mnist_ce.cli import options
from mnist_ce.cli.printing import note, print_json


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
    dataset: Annotated[
        str | None, Option(help="Whose test images to check with.", show_default="the run's own")
    ] = None,
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
    typer.echo(f"{result.path}  {result.num_bytes:,} bytes")
    typer.echo(
        f"equal predictions on {result.num_checked:,} test images, "
        f"logits within {result.max_difference:.1e}"
    )

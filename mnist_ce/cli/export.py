"""`mnist-ce export` and `mnist-ce report`, which write a file about runs."""

from __future__ import annotations

import typer

from mnist_ce.cli.printing import note, print_json


def export(
    checkpoint: str | None = None,
    file: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    output: str = "checkpoints",
    input_mean: float = 0.0,
    input_std: float = 1.0,
    json: bool = False,
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
        print_json(result.to_dict())
        return
    typer.echo(f"{result.path}  {result.num_bytes:,} bytes")
    typer.echo(
        f"equal predictions on {result.num_checked:,} test images, "
        f"logits within {result.max_difference:.1e}"
    )


def report(
    runs: list[str] | None = None,
    file: str | None = None,
    data_dir: str | None = None,
    output: str = "checkpoints",
) -> None:
    """Redraw the plots of runs and show them in one HTML file.

    Examples:
      mnist-ce report
      mnist-ce report first-run second-run --file comparison.html
    """
    from mnist_ce.report.report import report as run_report

    path = run_report(runs or (), output=output, data_dir=data_dir, file=file)
    typer.echo(str(path))

"""What `mnist-ce evaluate RUN --verify` prints."""

from __future__ import annotations

import typer

from mnist_ce.cli.printing import print_json
from mnist_ce.system.errors import RunError

__all__ = ["verify_run"]


def verify_run(
    name: str, *, output: str, data_dir: str | None, device: str, threads: int, json: bool
) -> None:
    """Say whether what a finished run says of itself is true.

    Raises:
        RunError: If something is not.
    """
    from mnist_ce.evaluation.verification import verify
    from mnist_ce.system.device import use_threads

    with use_threads(threads):
        run, checks = verify(name, output=output, data_dir=data_dir, device=device)
    failed = [check for check in checks if not check.ok]
    if json:
        content = [check.to_dict() for check in checks]
        print_json({"run": str(run.path), "verified": not failed, "checks": content})
    else:
        for check in checks:
            typer.echo(f"{'true ' if check.ok else 'FALSE'}  {check.name:<8} {check.found}")
    if failed:
        raise RunError(
            f"run {run.path} is not what it says: {', '.join(check.name for check in failed)}"
        )
    if not json:
        typer.echo(f"{run.path} is what it says")

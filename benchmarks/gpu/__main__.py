"""`make gpu-check`: the tests that need a GPU, then figures, then the page.

python -m benchmarks.gpu [--shards DIR] [--page FILE] [--work DIR]

Exit code 0: every test passed and all was measured. 1: there is no GPU, or something failed.
"""

import datetime
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.gpu.checks import ROOT, run_checks
from benchmarks.gpu.decoding import SECONDS, encoded_images, images_per_second
from benchmarks.gpu.page import Results, with_results
from benchmarks.gpu.training import CASES, Case, Figures, measure
from data_shards.base.atomic import write_atomic
from data_shards.base.errors import UserError, run
from smdt.cli.doctor import findings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PAIRS = ("--train", "512", "--val", "32", "--ground-size", "224x1232", "--aerial-size", "750")
"""A world with images of CVUSA's size."""


@app.command()
def check(
    shards: Annotated[
        Path | None, typer.Option(help="Data set with class maps; else a world is made.")
    ] = None,
    page: Annotated[Path, typer.Option(help="Page whose last section is replaced.")] = ROOT
    / "docs"
    / "gpu.md",
    work: Annotated[
        Path | None, typer.Option(help="Keep the world, the runs and their logs here.")
    ] = None,
) -> None:
    """Check and measure all that only GPUs can show, and write the page."""
    if not torch.cuda.is_available():
        raise UserError(
            "No GPU here, so nothing was checked: run it on a machine with an NVIDIA GPU; "
            "`smdt doctor` says what is missing."
        )
    with ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        results = examine(folder, shards)
    write_atomic(page, with_results(page.read_text(), results).encode())
    print(f"The results are in {page}.")
    failed = [f"{check.file}: {name}" for check in results.checks for name in check.failed]
    failed += [f"training {case}" for case, found in results.training if found is None]
    if failed:
        raise UserError(f"{len(failed)} did not pass: {', '.join(failed)}")


def examine(folder: Path, shards: Path | None) -> Results:
    """Run the tests, then measure.

    Raises:
        UserError: something could not be run at all.
    """
    checks = run_checks(folder / "checks.xml")
    data = shards or make_world(folder / "world")
    gpus, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
    decoding = {
        view: {
            device: images_per_second(encoded_images(data, view), view, device, SECONDS)
            for device in ("cpu", "gpu")
        }
        for view in ("aerial", "ground")
    }
    training = [(case, measured(case, data, folder / "runs", gpus, name)) for case in CASES]
    return Results(machine(), checks, decoding, training)


def measured(case: Case, data: Path, runs: Path, gpus: int, name: str) -> Figures | None:
    """Measure a case; if it fails, for lack of memory for example, the others still run."""
    try:
        return measure(case, data, runs, gpus, name)
    except UserError as error:
        print(error, file=sys.stderr)
        return None


def make_world(folder: Path) -> Path:
    """Make a world, or resume one that is there.

    Raises:
        UserError: it could not be made.
    """
    command = [
        sys.executable,
        "-m",
        "smdt.cli",
        "shards",
        "world",
        "--out",
        str(folder),
        *PAIRS,
    ]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise UserError(f"`smdt shards world` ended with exit code {done.returncode}")
    return folder


def machine() -> dict[str, str]:
    """Return what the results depend on: day, code, versions and hardware."""
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    found = {finding.subject: finding.found for finding in findings()}
    return {
        "date": today,
        "commit": commit.stdout.strip() or os.environ.get("SMDT_COMMIT", ""),
        **found,
    }


if __name__ == "__main__":
    run(app)

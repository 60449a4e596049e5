"""`smdt train` and `smdt report`: a run and its page."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli import ConfigOption, DeepSpeedOption, Overrides, Resume
from launcher.run.local import run_local
from smdt.cli.ranks import local_plan


def train(
    config: ConfigOption,
    overrides: Overrides = None,
    deepspeed_config: DeepSpeedOption = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    resume: Resume = "auto",
) -> None:
    """Train one stage on this machine through DeepSpeed's launcher."""
    from launcher.run.job import open_job
    from smdt.training.ranks.cpu import emulates_bf16

    job = open_job(config, deepspeed_config, resume, overrides or [], ranks, ranks)
    job.check()
    for line in job.examine_checkpoint():
        typer.echo(line, err=True)
    plan = local_plan("smdt.train", job.arguments(), ranks)
    if job.config.precision == "bf16" and not plan.has_gpu and emulates_bf16():
        typer.echo("precision: bf16 is many times slower than fp32 on this CPU", err=True)
    run_local(plan, job.folder)


def report(folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write report.html of a run: one page that needs nothing else."""
    from smdt.report.page import write_report

    print(write_report(folder))

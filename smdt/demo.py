"""From nothing to a recall on an unseen city: the README's own commands, one after the other."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_shards.errors import UserError
from smdt.report.page import read_json, write_report
from smdt.stages.references import write_references
from smdt.training.run_folder import RunFolder

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Budget:
    """How much a demo makes and trains.

    Attributes:
        train: pairs of the training cities.
        val: pairs of the unseen city.
        length: of the training.
    """

    train: int
    val: int
    length: str


FULL = Budget(train=2500, val=500, length="24 epochs")
QUICK = Budget(train=600, val=200, length="14 epochs")


def run_demo(out: Path, quick: bool) -> None:
    """Make a world, shard it, train on two ranks, evaluate on an unseen city, write the report.

    What is there already is kept: a demo that was stopped goes on.

    Raises:
        UserError: one of the commands failed.
    """
    budget = QUICK if quick else FULL
    out = out / "quick" if quick else out
    shards, run = out / "shards", RunFolder(out / "run")
    console, start = Console(), time.monotonic()
    _smdt(
        console,
        ["shards", "world", "--out", f"{shards}", "--seed", "0", "--difficulty", "normal"],
        ["--train", f"{budget.train}", "--val", f"{budget.val}"],
        ["--ground-size", "64x256", "--aerial-size", "192"],
    )
    _smdt(
        console,
        ["train", "--config", f"{CONFIGS / 'world' / 'retrieval.yaml'}"],
        ["--deepspeed_config", f"{CONFIGS / 'deepspeed' / 'zero2.json'}", "--ranks", "2"],
        [f"data.shards={shards}", f"run.out={run.root}", f"schedule.length={budget.length}"],
    )
    _smdt(
        console,
        ["evaluate", f"{run.root}", "--shards", f"{shards}"],
        ["--json", f"{run.evaluation}"],
    )
    scores = {"this run": read_json(run.evaluation)["scores"], **write_references(run)}
    page = write_report(run.root)
    table = Table("", *scores["this run"], title=f"Recall on {budget.val} unseen pairs")
    for name, recalls in scores.items():
        table.add_row(name, *(f"{recall:.1%}" for recall in recalls.values()))
    console.print(table)
    console.print(f"{page}  ({(time.monotonic() - start) / 60:.1f} minutes)")


def _smdt(console: Console, *parts: Sequence[str]) -> None:
    """Run one `smdt` command and show it as the user would type it."""
    arguments = [argument for part in parts for argument in part]
    console.rule("smdt " + " ".join(arguments), style="dim", align="left")
    done = subprocess.run([sys.executable, "-m", "smdt.cli", *arguments], check=False)
    if done.returncode != 0:
        raise UserError(f"`smdt {arguments[0]}` ended with exit code {done.returncode}")

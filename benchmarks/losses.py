"""InfoNCE with hard negatives against the soft margin with random batches, under one budget.

python -m benchmarks.losses --shards DIR --out DIR [--seeds N] [--minutes M] [--json FILE]
                            [section.key=value ...]

Trains retrieval of `configs/world/retrieval.yaml` with each loss on random batches and on hard ones
(on the map first, then by embedding), from several seeds, each run the same number of steps of the
same size in one process, and prints the recall on the held-out split with its spread over the
seeds. What is given as `section.key=value` holds for every run.

A run is a run folder below `--out`: finished ones are not trained again. After `--minutes` the run
that trains saves and stops; the same command resumes it.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_shards.console import write_json
from smdt.training.checkpoints.run_folder import RunFolder

CONFIGS = Path(__file__).parent.parent / "configs"
LOSSES: Mapping[str, Sequence[str]] = {
    "soft_margin": ("loss.name=soft_margin",),
    "info_nce": ("loss.name=info_nce",),
}
BATCHES: Mapping[str, Sequence[str]] = {
    "random": (),
    "hard": (
        "data.order.policy=hard",
        "data.order.hard.neighbours=32",
        "data.order.hard.group=10",
        "data.order.hard.map_epochs=2",
        "data.order.hard.refresh=2",
    ),
}
Arm = tuple[str, str]
"""A loss, and the kind of its batches."""
ARMS: Sequence[tuple[Arm, Arm]] = (
    (("soft_margin", "random"), ("info_nce", "hard")),
    (("soft_margin", "hard"), ("info_nce", "random")),
)
"""The first two are compared; the last two show which half of the change matters."""
SCORES = ("R@1", "R@5", "R@10")
SECONDS_TO_SAVE = 60


@dataclass(frozen=True)
class Cell:
    """One training: an arm from one seed."""

    arm: Arm
    seed: int
    out: Path

    @property
    def folder(self) -> RunFolder:
        """Its run."""
        return RunFolder(self.out / f"{self.arm[0]}-{self.arm[1]}-{self.seed}")

    def overrides(self, shards: str) -> list[str]:
        """Return what is its own in its configuration."""
        loss, batches = self.arm
        return [
            f"run.name={self.folder.root.name}",
            f"run.out={self.folder.root}",
            f"run.seed={self.seed}",
            f"data.shards={shards}",
            # One score, at the end: the best of many would be chosen on the split that is scored.
            "evaluation.every=0 epochs",
            "checkpoint.keep_last=1",
            "telemetry.metrics_port=null",
            *LOSSES[loss],
            *BATCHES[batches],
        ]

    def train(self, shards: str, overrides: Sequence[str], seconds: float) -> bool:
        """Train in a separate process, at most this long; return whether the run is done.

        Raises:
            CalledProcessError: the run failed.
        """
        command = [sys.executable, "-m", "smdt.train", *self.overrides(shards), *overrides]
        command += ["--config", f"{CONFIGS / 'world' / 'retrieval.yaml'}"]
        command += ["--deepspeed_config", f"{CONFIGS / 'deepspeed' / 'zero2.json'}"]
        process = subprocess.Popen(command)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait(SECONDS_TO_SAVE)
        state = self.folder.read_state() or {}
        if state.get("status") not in ("done", "preempted"):
            raise subprocess.CalledProcessError(code, command)
        return bool(state["status"] == "done")

    def result(self) -> dict[str, Any]:
        """Return recalls and seconds of steps of a finished run."""
        seconds = sum(record.get("step_seconds", 0.0) for record in self.folder.read_metrics())
        evaluation = json.loads(self.folder.evaluation.read_text())
        return {**evaluation["scores"], "step_seconds": seconds}


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation, in percent."""
    deviation = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1%}{deviation}"


def show(found: Mapping[Arm, Mapping[int, Mapping[str, float]]]) -> None:
    """Print a row for each arm, and what the challenger is ahead by, seed by seed."""
    table = Table("loss", "batches", "runs", *SCORES, "R@1 by seed", "s of steps")
    for (loss, batches), runs in found.items():
        recalls = (spread([scores[name] for scores in runs.values()]) for name in SCORES)
        by_seed = "  ".join(f"{scores['R@1']:.1%}" for scores in runs.values())
        seconds = statistics.fmean(scores["step_seconds"] for scores in runs.values())
        table.add_row(loss, batches, f"{len(runs)}", *recalls, by_seed, f"{seconds:.0f}")
    console = Console()
    console.print(table)
    base, ours = (found.get(arm, {}) for arm in ARMS[0])
    ahead = [ours[seed]["R@1"] - base[seed]["R@1"] for seed in ours if seed in base]
    if ahead:
        by_seed = ", ".join(f"{100 * each:+.1f}" for each in ahead)
        console.print(f"InfoNCE with hard negatives is ahead by {by_seed} points of R@1")


def main(
    shards: Annotated[str, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each.", min=1)] = 3,
    minutes: Annotated[float, typer.Option(help="Then stop and save.")] = 9.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Train what is not trained yet, and compare."""
    end = monotonic() + 60 * minutes
    found: dict[Arm, dict[int, dict[str, float]]] = {}
    # Seed by seed, so that a stopped run has both arms of a pair equally often.
    for cell in (Cell(arm, seed, out) for pair in ARMS for seed in range(seeds) for arm in pair):
        if (cell.folder.read_state() or {}).get("status") != "done":
            left = end - monotonic()
            if left <= 0 or not cell.train(shards, overrides or [], left):
                break
        found.setdefault(cell.arm, {})[cell.seed] = cell.result()
    show(found)
    if json_file is not None:
        named = {"-".join(arm): runs for arm, runs in found.items()}
        write_json(json_file, {"overrides": overrides or [], "arms": named})


if __name__ == "__main__":
    typer.run(main)

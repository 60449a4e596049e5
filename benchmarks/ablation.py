"""Retrieval scores with aligned images and with keep and remove, under one budget.

python -m benchmarks.ablation [--shards DIR] [--out DIR] [--seeds N] [--json FILE]
                              [section.key=value ...]

Trains retrieval of `configs/world/retrieval.yaml` on raw, polar, mixed and aligned aerial images,
without and with keep and remove, from several seeds, one process, and prints R@1 on the held-out
split with its spread over the seeds. The shards need class maps and aligned images, such as
`smdt demo --full` leaves in `demo/aligned`. All runs turn by quarters, the only turns that a raw
tile can follow. What is given as `section.key=value` holds for every run, such as
`schedule.length="4 epochs"`.

A run is a run folder below `--out`: finished ones are not trained again, and one that was
interrupted (by SIGTERM, a file `stop` in `--out`, or a kill) resumes from its checkpoint.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from data_shards.base.errors import InputError, Stopped, run
from data_shards.console import write_json
from smdt.geometry.aerial import Aerial
from smdt.stages import config as configuration
from smdt.stages.base_config import Config
from smdt.stages.config import load_deepspeed
from smdt.stages.retrieval.aligned import pin_alignment_weights
from smdt.train import log_to, run_stage
from smdt.training.checkpoints.resume import find_resume_point
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.deepspeed.settings import zero_stage
from smdt.training.ranks.cpu import keep_freed_memory, set_thread_count
from smdt.training.ranks.stopping import StopRequest

CONFIGS = Path(__file__).parent.parent / "configs"
AERIALS: Sequence[Aerial] = ("raw", "polar", "mixed", "aligned")
KEEP_AND_REMOVE = (
    "semantics.keep.road=0.1",
    "semantics.keep.building=0.1",
    "semantics.remove.vehicle=0.3",
    "semantics.remove.sky=0.1",
    "semantics.remove.vegetation=0.1",
)
SCORES = ("R@1", "R@5", "R@10")

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        aerial: what the aerial tower sees.
        painted: whether keep and remove paint the ground image.
        seed: of weights, order and augmentation.
    """

    aerial: Aerial
    painted: bool
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.aerial}{'-painted' if self.painted else ''}-{self.seed}"

    @property
    def condition(self) -> tuple[Aerial, bool]:
        """Return the condition: all settings but the seed."""
        return self.aerial, self.painted

    def config(self, shards: str, out: Path, overrides: Sequence[str]) -> Config:
        """Return the configuration of its run."""
        own = (
            f"run.name=ablation-{self.name}",
            f"run.out={out / self.name}",
            f"run.seed={self.seed}",
            f"data.shards={shards}",
            f"aerial={self.aerial}",
            "augment.turn=quarters",
            # One score, at the end: the best of many would be chosen on the split that is scored.
            "evaluation.every=0 epochs",
            "checkpoint.keep_last=1",
            "telemetry.metrics_port=null",
            *(KEEP_AND_REMOVE if self.painted else ()),
        )
        return configuration.load(CONFIGS / "world" / "retrieval.yaml", [*own, *overrides])


@dataclass(frozen=True)
class Row:
    """The scores of the runs of one condition.

    Attributes:
        aerial: what the aerial tower sees.
        painted: whether keep and remove paint the ground image.
        runs: recalls by seed.
    """

    aerial: Aerial
    painted: bool
    runs: Mapping[int, Scores]

    def mean(self, name: str) -> float:
        """Mean of a recall over the seeds."""
        return statistics.fmean(scores[name] for scores in self.runs.values())

    def deviation(self, name: str) -> float | None:
        """Standard deviation of a recall over the seeds, as of a sample; None of one alone."""
        if len(self.runs) < 2:
            return None
        return statistics.stdev(scores[name] for scores in self.runs.values())

    def figures(self) -> dict[str, object]:
        """All of it as JSON values."""
        recalls = {
            name: {
                "by_seed": {f"{seed}": scores[name] for seed, scores in self.runs.items()},
                "mean": self.mean(name),
                "deviation": self.deviation(name),
            }
            for name in SCORES
        }
        return {"aerial": self.aerial, "keep_and_remove": self.painted, **recalls}


def cells(seeds: int) -> Iterator[Cell]:
    """Yield all cells, seed by seed: what is stopped has every condition equally often."""
    for seed in range(seeds):
        for aerial in AERIALS:
            for painted in (False, True):
                yield Cell(aerial, painted, seed)


def finished(config: Config) -> Scores | None:
    """Return the scores of a run that is done, None if it is not.

    Raises:
        InputError: the folder holds a run of another budget.
    """
    folder = RunFolder(config.run.out)
    if folder.config.exists() and configuration.load(folder.config) != config:
        raise InputError(
            f"{folder.root} holds a run of another configuration: name another --out, or delete it"
        )
    state = folder.read_state()
    if state is None or state["status"] != "done":
        return None
    return scores_of(folder)


def train(
    config: Config, device: torch.device, stop: StopRequest, collectives: CollectiveTimer
) -> Scores:
    """Train and evaluate one run, from the start or where it stopped.

    Raises:
        Stopped: on request, after saving.
    """
    folder = RunFolder(config.run.out)
    folder.create()
    log_to(folder.logs / "rank-00000.log")
    settings = load_deepspeed(CONFIGS / "deepspeed" / "zero2.json")
    origin = find_resume_point(folder, "auto", zero_stage(settings), world_size=1)
    progress, total = run_stage(config, settings, folder, origin, device, stop, collectives)
    if progress.step < total:
        folder.write_state("preempted", progress.step)
        raise Stopped("Stopped and saved; start the same command again to resume.")
    folder.write_state("done", progress.step)
    return scores_of(folder)


def scores_of(folder: RunFolder) -> Scores:
    """Return the scores of the last evaluation."""
    scores: Scores = json.loads(folder.evaluation.read_text())["scores"]
    return scores


def summary(found: Mapping[Cell, Scores]) -> list[Row]:
    """Return a row for each condition that has a score."""
    return [
        Row(aerial, painted, runs)
        for aerial in AERIALS
        for painted in (False, True)
        if (runs := {c.seed: s for c, s in found.items() if c.condition == (aerial, painted)})
    ]


def show(rows: Sequence[Row], title: str) -> None:
    """Print the table: means in percent, of R@1 with its spread."""
    table = Table("aerial", "keep, remove", "R@1", "by seed", "R@5", "R@10", title=title)
    for row in rows:
        deviation = row.deviation("R@1")
        spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
        table.add_row(
            row.aerial,
            "yes" if row.painted else "no",
            f"{100 * row.mean('R@1'):.1f}{spread}",
            " ".join(f"{100 * scores['R@1']:.1f}" for scores in row.runs.values()),
            f"{100 * row.mean('R@5'):.1f}",
            f"{100 * row.mean('R@10'):.1f}",
        )
    Console().print(table)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    shards: Annotated[
        str, typer.Option(help="With class maps and aligned images.")
    ] = "demo/aligned",
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each condition.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Train what is missing, and print the table of what there is."""
    set_thread_count()
    keep_freed_memory()
    collectives = CollectiveTimer()
    collectives.watch()
    device = init_distributed(600.0)
    (out / "stop").unlink(missing_ok=True)
    stop = StopRequest(out / "stop")
    stop.listen()
    found: dict[Cell, Scores] = {}
    try:
        for cell in cells(seeds):
            config = pin_alignment_weights(cell.config(shards, out, overrides or []))
            found[cell] = finished(config) or train(config, device, stop, collectives)
    finally:
        rows = summary(found)
        show(rows, f"{len(found)} runs on {shards}, recall in %")
        write_json(json_file, {"shards": shards, "rows": [row.figures() for row in rows]})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(app)

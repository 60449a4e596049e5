"""How long training waits for a checkpoint of a large model, and how long publishing takes.

python -m benchmarks.saving [--ranks N] [--zero STAGE] [--layers N] [--turns N] [--folder DIR]

*Written* is what all ranks wait for; *published* adds the hashes and the disk's confirmation, for
which a run's rank 0 has a thread.
"""

import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.ranks import WIDTH, open_engine, run_ranks, step
from smdt.data.order import DataState
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.retention import Retention


def save(zero: int, layers: int, turns: int, folder: Path) -> None:
    """Save on one rank; write how long each turn took, and the bytes."""
    engine = open_engine(zero, layers)
    step(engine)
    checkpoints = folder / "checkpoints"
    retention = Retention(checkpoints, keep_last=1)
    found = []
    for turn in range(turns):
        progress = Progress(turn, 0, dist.get_world_size(), zero, DataState("", 0, 0, 0))
        dist.barrier()
        start = perf_counter()
        checkpoint.write(checkpoints, {"layers": engine}, progress, {})
        written = perf_counter()
        if dist.get_rank() == 0:
            size = checkpoint.publish_step(checkpoints, turn)
            found.append((written - start, perf_counter() - start, size))
            retention.apply(turn, None)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))


def main(
    ranks: Annotated[int, typer.Option(help="Ranks.")] = 2,
    zero: Annotated[int, typer.Option(help="ZeRO stage.")] = 2,
    layers: Annotated[int, typer.Option(help=f"Layers of {WIDTH}x{WIDTH}.")] = 188,
    turns: Annotated[int, typer.Option(help="Checkpoints.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Disk to save on.")] = None,
) -> None:
    """Measure saving."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run_ranks(ranks, save, zero, layers, turns, Path(place))
        found = json.loads((Path(place) / "found.json").read_text())
    table = Table("", *(f"turn {turn + 1}" for turn in range(turns)), "median")
    for name, column in (("written, s", 0), ("published, s", 1)):
        values = [each[column] for each in found]
        table.add_row(name, *(f"{value:.2f}" for value in (*values, statistics.median(values))))
    console = Console()
    console.print(table)
    parameters = layers * WIDTH**2 / 1e6
    console.print(f"{parameters:.0f} million parameters, {found[0][2] / 1e9:.2f} GB, ZeRO {zero}")


if __name__ == "__main__":
    typer.run(main)

"""One run on two ranks, compared with two runs of one rank at once: what ranks cost each other.

python -m benchmarks.two_ranks [--config FILE] [--steps N] [--rounds N] [--zero STAGE] [--json FILE]

All are real `smdt train` processes on a synthetic world, one thread a rank. The run on two ranks
has twice the batch of a single one, so that a rank does the same; it adds the exchange of
gradients and descriptors, and the negatives of the other rank. Rates are of the seconds in which
all processes train, without the first steps. The two take turns.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from smdt.training.checkpoints.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
DEEPSPEED_FILES = ROOT / "configs" / "deepspeed"
WARM_UP = 5
"""First steps of a run that are not counted."""
LONG = "1000 epochs"


def start(
    config: Path, zero: int, ranks: int, out: Path, overrides: list[str]
) -> subprocess.Popen[bytes]:
    """Start training."""
    command = [sys.executable, "-m", "smdt.cli", "train", "--config", str(config)]
    command += ["--deepspeed_config", str(DEEPSPEED_FILES / f"zero{zero}.json")]
    command += ["--ranks", str(ranks), f"run.out={out}", "telemetry.metrics_port=null"]
    command += [f"evaluation.every={LONG}", f"checkpoint.every={LONG}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (out.parent / f"{out.name}.log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def samples_per_second(runs: list[Path], batch: int) -> float:
    """Return the summed rate of simultaneous runs, while all of them trained.

    Args:
        runs: their folders.
        batch: global, of each.
    """
    ends = []
    for run in runs:
        records = [record for record in RunFolder(run).read_metrics() if "losses" in record]
        ends.append([record["time"] for record in records])
    first, last = max(times[WARM_UP] for times in ends), min(times[-1] for times in ends)
    rate = 0.0
    for times in ends:
        inside = [time for time in times if first <= time <= last]
        rate += batch * (len(inside) - 1) / (inside[-1] - inside[0])
    return rate


def train(
    config: Path, zero: int, ranks: list[int], batch: int, out: Path, more: list[str]
) -> float:
    """Train one run for each entry of `ranks` at the same time; return their rate together."""
    out.mkdir(parents=True)
    runs = [out / f"run-{number}" for number in range(len(ranks))]
    shared = [*more, f"batch.global={batch}"]
    processes = [
        start(config, zero, count, run, shared) for count, run in zip(ranks, runs, strict=True)
    ]
    for process, run in zip(processes, runs, strict=True):
        if process.wait() != 0:
            raise RuntimeError(f"{run}: {(out / f'{run.name}.log').read_text()[-2000:]}")
    return samples_per_second(runs, batch)


def main(
    config: Annotated[Path, typer.Option(help="Configuration of the training.")] = ROOT
    / "configs/world/retrieval.yaml",
    batch: Annotated[int, typer.Option(help="Pairs of a rank in a step.")] = 25,
    steps: Annotated[int, typer.Option(help="Number of steps of every run.")] = 40,
    rounds: Annotated[int, typer.Option(help="Turns.")] = 3,
    zero: Annotated[int, typer.Option(help="ZeRO stage.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure what two ranks keep of the rate of two runs of one rank."""
    alone, together = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = root / "shards"
        build(WorldSource(0, 4 * batch, 8, "easy", (64, 256), 192), shards, BuildOptions())
        more = [f"data.shards={shards}", f"schedule.length={steps} steps"]
        for turn in range(rounds):
            out = root / str(turn)
            together.append(train(config, zero, [2], 2 * batch, out / "together", more))
            alone.append(train(config, zero, [1, 1], batch, out / "alone", more))
    kept = [ours / theirs for ours, theirs in zip(together, alone, strict=True)]
    table = Table("", *(f"turn {turn + 1}" for turn in range(rounds)), "median")
    for name, values, form in (
        ("two runs of one rank, samples/s", alone, ".1f"),
        ("one run of two ranks, samples/s", together, ".1f"),
        ("kept", kept, ".0%"),
    ):
        cells = (format(value, form) for value in (*values, statistics.median(values)))
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    console.print(
        f"{config.name}, ZeRO {zero}, {batch} pairs a rank, load {os.getloadavg()[0]:.1f}"
    )
    if json_file is not None:
        machine = {"machine": platform.machine(), "cores": os.cpu_count()}
        content = {"machine": machine, "zero": zero, "batch": batch, "alone": alone}
        json_file.write_text(json.dumps({**content, "together": together, "kept": kept}, indent=2))


if __name__ == "__main__":
    typer.run(main)

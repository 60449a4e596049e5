"""The cost of telemetry in a training step, timed part by part in a real run of two ranks.

python -m benchmarks.telemetry [--ranks N] [--steps N] [--json FILE]

Two runs that differ by telemetry alone differ by more than 1 % for other reasons on a shared
machine. So the run is one, `configs/world/retrieval.yaml`, and each of its ranks adds up the time
that it spends in telemetry: around every call for what runs in a step, by its own price times how
often it happens for what runs in other threads.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, ClassVar
from unittest.mock import patch

import torch
import typer
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from rich.table import Table

from smdt import train
from smdt.stages.config import load, load_deepspeed
from smdt.telemetry.metrics import TrainingMetrics
from smdt.telemetry.tensorboard import TensorBoard
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.loop.step_recorder import StepRecord, StepRecorder
from smdt.training.loop.step_status import StepStatus
from smdt.training.ranks.environment import free_port

CONFIGS = Path(__file__).parent.parent / "configs"
WORLD = ("--train", "200", "--val", "8", "--ground-size", "64x256", "--aerial-size", "192")
SCRAPE_SECONDS = 15.0
"""As `configs/monitoring/prometheus.yml` has it."""
VIEWS = 2
WARM_UP_STEPS = 10
STEP, LINES, EVENTS = "measuring the step", "metrics.jsonl (rank 0)", "TensorBoard (rank 0, option)"

spent: dict[str, float] = defaultdict(float)
"""Seconds that this rank spent in each part of telemetry."""
registries: list[CollectorRegistry] = []
"""What this rank exports."""


@contextmanager
def clocked(part: str) -> Iterator[None]:
    """Add the wall time of the block to a part."""
    start = perf_counter()
    try:
        yield
    finally:
        spent[part] += perf_counter() - start


class ClockedWatch(StepRecorder):
    """A recorder whose own time is measured."""

    collectives: ClassVar[list[int]] = []
    """How many the steps had."""

    def start_run(self, step: int, total: int) -> None:
        """As `StepRecorder`."""
        super().start_run(step, total)
        registries.append(self._metrics.registry)

    def start_step(self) -> None:
        """As `StepRecorder`."""
        with clocked(STEP):
            super().start_step()

    @contextmanager
    def measure_compute(self, step: int, epoch: int) -> Iterator[None]:
        """Measure the block as the step recorder does; the block itself is not telemetry."""
        block = super().measure_compute(step, epoch)
        with clocked(STEP):
            block.__enter__()
        yield
        with clocked(STEP):
            block.__exit__(None, None, None)

    def end_step(self, step: int) -> None:
        """As `StepRecorder`."""
        with clocked(STEP):
            super().end_step(step)
        self.collectives.append(len(self._unpublished_steps[step].collectives or ()))

    def publish(self, agreement: StepStatus) -> StepRecord:
        """As `StepRecorder`."""
        with clocked(STEP):
            return super().publish(agreement)


class ClockedEvents(TensorBoard):
    """Event files whose writing is timed."""

    def step(self, step: int, groups: Mapping[str, Mapping[str, float]]) -> None:
        """As the writer does."""
        with clocked(EVENTS):
            super().step(step, groups)


class ClockedFolder(RunFolder):
    """A run folder that times the lines of steps."""

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """As the folder does."""
        with clocked(LINES):
            super().append_metrics(record)


def price_seconds(call: Callable[[], object], times: int = 2000) -> float:
    """Return what one call costs, of many."""
    start = perf_counter()
    for _ in range(times):
        call()
    return (perf_counter() - start) / times


def rank_costs(overrides: list[str]) -> dict[str, float]:
    """Train on this rank; return the seconds a step that each part of telemetry took, and the step.

    Args:
        overrides: of the configuration.
    """
    config = load(CONFIGS / "world" / "retrieval.yaml", overrides)
    settings = load_deepspeed(CONFIGS / "deepspeed" / "zero2.json")
    folder = ClockedFolder(config.run.out)
    folder.create()
    with ExitStack() as stack:
        stack.enter_context(patch.object(train, "StepRecorder", ClockedWatch))
        stack.enter_context(patch.object(train, "TensorBoard", ClockedEvents))
        stack.enter_context(patch("sys.stdout", sys.stderr))
        _, steps = train.train_rank(config, settings, folder, "never")

    timing = CollectiveTimer()
    timed = timing._timed(lambda: None)
    wrapper = price_seconds(timed) - price_seconds(lambda: None)
    wrapper += price_seconds(lambda: [each.seconds() for each in timing.take()[:1]])
    metrics = TrainingMetrics("", "", 0)
    read = price_seconds(lambda: metrics.read_bytes.inc(9))
    read += price_seconds(lambda: metrics.read_seconds.observe(0.01))
    scrape = price_seconds(lambda: generate_latest(registries[0]), 50)
    records = [record for record in folder.read_metrics() if "losses" in record]
    step = statistics.median(record["step_seconds"] for record in records[WARM_UP_STEPS:])
    share = config.batch.global_batch // int(os.environ["WORLD_SIZE"])
    return {
        "step": step,
        **{part: seconds / steps for part, seconds in spent.items()},
        "timing collectives": wrapper * statistics.mean(ClockedWatch.collectives),
        "counting reads (other threads)": read * VIEWS * share,
        "a scrape every 15 s (another thread)": scrape * step / SCRAPE_SECONDS,
    }


def start_rank(rank: int, ranks: int, port: int, overrides: list[str]) -> subprocess.Popen[str]:
    """Start a rank that prints its costs as JSON."""
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    variables = {name: str(value) for name, value in {**ours, **place}.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.telemetry", *overrides],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )


def measure(folder: Path, ranks: int, steps: int) -> list[dict[str, float]]:
    """Make a world, train on it, return the costs of every rank."""
    make = [
        sys.executable,
        "-m",
        "smdt.cli",
        "shards",
        "world",
        "--out",
        str(folder / "world"),
    ]
    subprocess.run([*make, *WORLD], check=True, stdout=sys.stderr)
    never = f"{10 * steps} steps"
    overrides = [
        f"data.shards={folder / 'world'}",
        f"run.out={folder / 'run'}",
        f"schedule.length={steps} steps",
        *(f"{section}.every={never}" for section in ("checkpoint", "evaluation")),
        *("telemetry.metrics_port=0", "telemetry.tensorboard=true"),
    ]
    port = free_port()
    started = [start_rank(rank, ranks, port, overrides) for rank in range(ranks)]
    printed = [process.communicate()[0] for process in started]
    assert all(process.returncode == 0 for process in started), printed
    return [json.loads(text.splitlines()[-1]) for text in printed]


def main(
    ranks: Annotated[int, typer.Option(help="Number of ranks.")] = 2,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 60,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, print a table."""
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(Path(folder), ranks, steps)
    worst = {part: max(each.get(part, 0.0) for each in costs) for part in costs[0]}
    step = worst.pop("step")
    table = Table("part", "us a step", "of a step", title=f"Telemetry; a step: {1e3 * step:.0f} ms")
    always = sum(seconds for part, seconds in worst.items() if part != EVENTS)
    for part, seconds in {**worst, "all but TensorBoard": always}.items():
        table.add_row(part, f"{1e6 * seconds:.0f}", f"{seconds / step:.3%}")
    Console().print(table)
    if json_file is not None:
        about = {"torch": torch.__version__, "ranks": ranks, "steps": steps}
        json_file.write_text(json.dumps({**about, "step": step, "parts": worst}, indent=2) + "\n")


if __name__ == "__main__":
    if "RANK" in os.environ:
        print("\n" + json.dumps(rank_costs(sys.argv[1:])))
    else:
        typer.run(main)

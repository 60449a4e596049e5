"""A throughput model for many nodes, built from measured parts and checked on one and two ranks.

python -m benchmarks.capacity [--batch N] [--zero STAGE] [--rounds N] [--ranks-per-node N]
    [--link-gbit G] [--json FILE]

The parts are measured separately: the rate of the loader without computing, the length of a step
whose batch is ready, the bytes and calls of the exchange, and the cost of a call and of a byte. The
model combines them for one and for two ranks and is compared with real `smdt train` runs of as
many; then it predicts more nodes like this one with the link that is named. See `docs/scaling.md`.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.ranks import run_ranks
from benchmarks.turns import machine
from benchmarks.two_ranks import train
from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from smdt.data.loader import TrainLoader
from smdt.data.split import Split
from smdt.stages.config import load, load_deepspeed
from smdt.stages.registry import training_views
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.setup import open_engines
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.deepspeed.engine import init_distributed
from smdt.training.loop.stage import StepContext
from smdt.training.ranks.cpu import keep_freed_memory

ROOT = Path(__file__).parent.parent
NODES = (1, 2, 4, 8, 16, 32, 64)
PASSES = {0: 2, 1: 2, 2: 2, 3: 3}
"""Passes of all parameters round the ring in a step: gradients there, weights back; ZeRO 3 gathers
twice."""
BYTES = 2
"""Bytes of a gradient or a weight in transit, in bf16."""
TOLERANCE = 0.15
"""Largest error of the model for one and two ranks; above it, nothing is predicted for more."""
WARM_UP, STEPS = 5, 30
SMALL, LARGE = 1 << 10, 1 << 23
"""Bytes of the two all-reduces that separate the cost of a call from the cost of a byte."""


@dataclass(frozen=True)
class Parts:
    """The cost of one rank's part of a step.

    Attributes:
        pairs: of a step.
        loader_pairs_per_second: without computing.
        compute_seconds: of a step whose batch is there.
        parameters: that are trained.
        descriptor_bytes: of the rank's pairs, both towers.
        calls: collectives of a step.
    """

    pairs: int
    loader_pairs_per_second: float
    compute_seconds: float
    parameters: int
    descriptor_bytes: int
    calls: float


@dataclass(frozen=True)
class Link:
    """The link between ranks.

    Attributes:
        call_seconds: of a collective of two ranks that carries nothing.
        bytes_per_second: that a rank receives.
    """

    call_seconds: float
    bytes_per_second: float


def exchanged_bytes(parts: Parts, zero: int, ranks: int) -> float:
    """Return how many bytes a rank receives in a step with ring collectives (pure)."""
    rounds = PASSES[zero] * parts.parameters * BYTES * (ranks - 1) / ranks
    return rounds + 2 * parts.descriptor_bytes * (ranks - 1)  # descriptors and their gradients


def step_seconds(parts: Parts, link: Link, zero: int, ranks: int) -> dict[str, float]:
    """Seconds of the loader, of computing and of the exchange, and of the step (pure).

    The loader works in parallel to the step, so the longer of the two counts. The exchange is not
    hidden at all, and a call of W ranks costs log2(W) times one of two.
    """
    loader = parts.pairs / parts.loader_pairs_per_second
    calls = parts.calls * link.call_seconds * math.ceil(math.log2(ranks))
    exchange = calls + exchanged_bytes(parts, zero, ranks) / link.bytes_per_second
    step = max(loader, parts.compute_seconds + exchange)
    return {
        "loader": loader,
        "compute": parts.compute_seconds,
        "exchange": exchange,
        "step": step,
    }


def pairs_per_second(parts: Parts, link: Link, zero: int, ranks: int) -> float:
    """Return the throughput of all ranks together (pure)."""
    return ranks * parts.pairs / step_seconds(parts, link, zero, ranks)["step"]


def measure_part(shards: Path, batch: int, zero: int) -> Parts:
    """Run as a rank in this process and measure it."""
    keep_freed_memory()
    collectives = CollectiveTimer()
    collectives.watch()
    device = init_distributed(600.0)
    overrides = [f"data.shards={shards}", f"run.out={shards}-run", f"batch.global={batch}"]
    config = load(ROOT / "configs/world/retrieval.yaml", overrides)
    assert isinstance(config, RetrievalConfig), "the file says so"
    loader = TrainLoader(
        Split.open(shards, "train"),
        config.data,
        views=training_views(config),
        global_batch=batch,
        seed=0,
        rank=0,
        world_size=1,
        device=device,
        quarantine=RunFolder(config.run.out).quarantine,
        metrics=TrainingMetrics("", "", 0),
    )
    with closing(loader.stream(loader.start, WARM_UP + STEPS)) as stream:
        batches = [next(stream) for _ in range(WARM_UP)]
        start = perf_counter()
        for _ in range(STEPS):
            next(stream)
        loader_rate = STEPS * batch / (perf_counter() - start)
    stage = RetrievalStage(config)
    settings = load_deepspeed(ROOT / f"configs/deepspeed/zero{zero}.json")
    engines = open_engines(config, settings, stage, world_size=1)
    context = StepContext(0, 0, 0, 1, chunks=1, device=device, rate_factor=1.0)
    seconds, calls = [], []
    for turn in range(WARM_UP + STEPS):
        collectives.take()
        start = perf_counter()
        losses = stage.step(engines, batches[turn % WARM_UP], context)
        float(losses["loss"])
        seconds.append(perf_counter() - start)
        calls.append(len(collectives.take()))
    return Parts(
        pairs=batch,
        loader_pairs_per_second=loader_rate,
        compute_seconds=statistics.median(seconds[WARM_UP:]),
        parameters=sum(p.numel() for p in stage.towers.parameters() if p.requires_grad),
        descriptor_bytes=2 * batch * stage.towers.descriptor_dim * 4,
        calls=statistics.fmean(calls[WARM_UP:]),
    )


def measure_parts(shards: Path, batch: int, zero: int, processes: int) -> Parts:
    """Measure this many ranks at the same time on one machine; return their mean."""
    command = [sys.executable, "-m", "benchmarks.capacity", "part", f"{shards}", f"{batch}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the runs that it is compared with
    running = [
        subprocess.Popen([*command, f"{zero}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    found = [Parts(**json.loads(each.communicate()[0].splitlines()[-1])) for each in running]
    rate = statistics.fmean(each.loader_pairs_per_second for each in found)
    compute = statistics.fmean(each.compute_seconds for each in found)
    return replace(found[0], loader_pairs_per_second=rate, compute_seconds=compute)


def measure_link() -> Link:
    """Measure what joins two ranks of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(2, time_link, Path(folder) / "link.json")
        return Link(**json.loads((Path(folder) / "link.json").read_text()))


def time_link(file: Path) -> None:
    """Time all-reduces among the ranks; rank 0 writes the file."""

    def seconds(size: int) -> float:
        tensor = torch.zeros(size // BYTES, dtype=torch.bfloat16)
        return statistics.median(timed(lambda: dist.all_reduce(tensor)) for _ in range(STEPS))

    small, large = seconds(SMALL), seconds(LARGE)
    if dist.get_rank() == 0:
        # among two ranks an all-reduce brings each as many bytes as there are
        file.write_text(json.dumps(asdict(Link(small, LARGE / (large - small)))))


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def main(
    batch: Annotated[int, typer.Option(help="Pairs of a rank in a step.")] = 25,
    zero: Annotated[int, typer.Option(help="ZeRO stage.")] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each measurement.")] = 3,
    ranks_per_node: Annotated[int, typer.Option(help="Ranks of a predicted node.")] = 2,
    link_gbit: Annotated[float, typer.Option(help="Gigabits a second of a node.")] = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Predict the rate of many nodes, and how far off the prediction is for one and two ranks."""
    checks, measured_link, shared, farthest = [], measure_link(), None, 0.0
    table = Table("ranks", "predicted pairs/s", "measured", "off")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = root / "shards"
        build(WorldSource(0, 4 * batch, 8, "easy", (64, 256), 192), shards, BuildOptions())
        more = [f"data.shards={shards}", f"schedule.length={WARM_UP + STEPS} steps"]
        config = ROOT / "configs/world/retrieval.yaml"
        for ranks in (1, 2):
            predicted, measured = [], []
            for turn in range(rounds):
                shared = measure_parts(shards, batch, zero, ranks)
                predicted.append(pairs_per_second(shared, measured_link, zero, ranks))
                out = root / f"{ranks}-{turn}"
                measured.append(train(config, zero, [ranks], ranks * batch, out, more))
            pair = statistics.median(predicted), statistics.median(measured)
            off = pair[0] / pair[1] - 1
            farthest = max(farthest, abs(off))
            checks.append({"ranks": ranks, "predicted": predicted, "measured": measured})
            table.add_row(f"{ranks}", f"{pair[0]:.1f}", f"{pair[1]:.1f}", f"{off:+.0%}")
    console = Console()
    console.print(table)
    assert shared is not None, "two ranks were measured"
    between = Link(measured_link.call_seconds, link_gbit * 1e9 / 8 / ranks_per_node)
    ahead = Table("nodes", "ranks", "pairs/s", "of linear", "loader s", "compute s", "exchange s")
    one = pairs_per_second(shared, measured_link, zero, ranks_per_node)
    for nodes in NODES:
        link = measured_link if nodes == 1 else between
        ranks = nodes * ranks_per_node
        rate = pairs_per_second(shared, link, zero, ranks)
        seconds = step_seconds(shared, link, zero, ranks)
        parts = (f"{seconds[name]:.4f}" for name in ("loader", "compute", "exchange"))
        ahead.add_row(f"{nodes}", f"{ranks}", f"{rate:.0f}", f"{rate / one / nodes:.0%}", *parts)
    if farthest <= TOLERANCE:
        console.print(ahead)
    else:
        console.print(f"off by more than {TOLERANCE:.0%}: nothing is predicted for more nodes")
    console.print(f"{shared}, {measured_link}, ZeRO {zero}, {machine()}")
    if json_file is not None:
        content = {"machine": machine(), "zero": zero, "parts": asdict(shared)}
        content |= {"link": asdict(measured_link), "checks": checks}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["part"]:
        torch.manual_seed(0)
        part = measure_part(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        print(json.dumps(asdict(part)))
    else:
        typer.run(main)

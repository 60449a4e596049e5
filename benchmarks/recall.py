"""Ranking every query against every gallery item: ours against the matrix product that it needs.

python -m benchmarks.recall [--gallery G] [--dim D] [--queries Q] [--block B] [--json FILE]

The bare product writes the scores of a block of queries into memory that is reused, and looks at
none of them. The plain loop is how it is usually published: the same product, then one comparison
a query. All take turns on the same queries, in a process of its own whose memory is measured.
Descriptors are random, each query near its own item; ranks are checked in float64.
"""

import json
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from smdt.evaluation.recall import BLOCK, true_ranks

NOISE = 6.0
"""Length of what is added to an item to make its query, in lengths of the item."""
CHECKED = 64
"""Queries that are ranked in float64 too."""
BARE, OURS, LOOP = "bare product", "smdt", "plain loop"


def make_descriptors(gallery: int, dim: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [Q, D], a gallery [G, D], and the right item of each query int64 [Q, 1]."""
    generator = torch.Generator().manual_seed(0)
    items = F.normalize(torch.randn(gallery, dim, generator=generator))
    right = torch.linspace(0, gallery - 1, queries).long()
    noise = F.normalize(torch.randn(queries, dim, generator=generator))
    return F.normalize(items[right] + NOISE * noise), items, right.unsqueeze(1)


def bare(query: Tensor, gallery: Tensor, block: int) -> None:
    """Make all scores and use none."""
    scores = query.new_empty(block, len(gallery))
    for start in range(0, len(query), block):
        rows = query[start : start + block]
        torch.mm(rows, gallery.T, out=scores[: len(rows)])


def plain_loop(query: Tensor, gallery: Tensor, right: Tensor, block: int) -> list[int]:
    """Compare one query after the other; ties count as hits."""
    ranks = []
    for start in range(0, len(query), block):
        scores = query[start : start + block] @ gallery.T
        for row, item in zip(scores, right[start : start + block, 0], strict=True):
            ranks.append(int((row > row[item]).sum()))
    return ranks


def wrong_ranks(query: Tensor, gallery: Tensor, right: Tensor, ranks: Tensor) -> int:
    """Count ranks that float64 contradicts.

    A rank is right between the number of items that are nearer by more than rounding can be, and
    that of those that are not farther by as much.
    """
    rows = torch.linspace(0, len(query) - 1, CHECKED).long()
    scores = query[rows].double() @ gallery.double().T
    true = scores.gather(1, right[rows])
    scores.scatter_(1, right[rows], -2.0)
    margin = 2 * torch.finfo(torch.float32).eps * gallery.shape[1] ** 0.5
    least, most = (scores > true + margin).sum(1), (scores >= true - margin).sum(1)
    return int(((ranks[rows] < least) | (ranks[rows] > most)).sum())


def memory_kb(name: str) -> int:
    """Return a figure of this process: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(
    gallery_size: int, dim: int, queries: int, block: int, threads: int, turns: int, loop: bool
) -> dict[str, Any]:
    """Time the methods interleaved, and measure the memory of ours."""
    torch.set_num_threads(threads)
    query, gallery, right = make_descriptors(gallery_size, dim, queries)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    ranks = true_ranks(query, gallery, right, block=block)
    peak = memory_kb("VmHWM")
    wrong = wrong_ranks(query, gallery, right, ranks)
    methods: dict[str, Callable[[], object]] = {
        BARE: lambda: bare(query, gallery, block),
        OURS: lambda: true_ranks(query, gallery, right, block=block),
    }
    if loop:
        methods[LOOP] = lambda: plain_loop(query, gallery, right, block)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(turns):
        for name, call in methods.items():
            start = perf_counter()
            call()
            seconds[name].append(perf_counter() - start)
    ratios = {
        name: [own / against for own, against in zip(each, seconds[BARE], strict=True)]
        for name, each in seconds.items()
    }
    return {
        "threads": threads,
        "seconds": seconds,
        "ratio": {name: statistics.median(each) for name, each in ratios.items()},
        "ratios": ratios,
        "peak_mib": peak / 1024,
        "wrong_ranks": wrong,
        "recall_at_1": float((ranks < 1).double().mean()),
    }


def main(
    gallery: Annotated[int, typer.Option(help="Gallery items.")] = 92_802,
    dim: Annotated[int, typer.Option(help="Numbers of a descriptor.")] = 768,
    queries: Annotated[int, typer.Option(help="Queries; 0 is as many as items.")] = 4096,
    block: Annotated[int, typer.Option(help="Queries scored at a time.")] = BLOCK,
    turns: Annotated[int, typer.Option(help="Turns of each method.")] = 5,
    threads: Annotated[list[int] | None, typer.Option(help="Threads, one run each.")] = None,
    loop: Annotated[bool, typer.Option(help="Measure the plain loop too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures.")] = None,
) -> None:
    """Measure ranking against the bare product, and its memory."""
    table = Table("threads", "method", "s", "quickest", "times the bare product", "peak MiB")
    results = []
    spawn = multiprocessing.get_context("spawn")
    for count in threads or [1, 2]:
        with spawn.Pool(1) as process:
            arguments = (gallery, dim, queries or gallery, block, count, turns, loop)
            found = process.apply(measure, arguments)
        assert found["wrong_ranks"] == 0, "ranks are not what they should be"
        for name, each in found["seconds"].items():
            low, high = np.quantile(found["ratios"][name], (0.25, 0.75))
            table.add_row(
                str(count),
                name,
                f"{statistics.median(each):.2f}",
                f"{min(each):.2f}",
                f"{found['ratio'][name]:.3f} ({low:.3f} to {high:.3f})",
                f"{found['peak_mib']:.0f}" if name == OURS else "",
            )
        results.append(found)
    console = Console()
    console.print(table)
    load = os.getloadavg()[0]
    console.print(
        f"{queries or gallery} queries, {gallery} items, {dim} numbers, blocks of {block}, "
        f"{turns} turns, load {load:.1f}, R@1 {results[0]['recall_at_1']:.1%}"
    )
    if json_file is not None:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": load}
        content = {"machine": {**machine, "torch": torch.__version__}, "results": results}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

"""Methods that take turns, so that a disturbance of the machine meets all of them."""

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter, process_time

import torch
from rich.table import Table


@dataclass
class Times:
    """Seconds of a method, one entry a turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of all threads: least affected by a busy machine."""


def take_turns(methods: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Time the methods by turns, after one turn of warming up."""
    times = {name: Times() for name in methods}
    for turn in range(rounds + 1):
        for name, method in methods.items():
            wall, cpu = perf_counter(), process_time()
            method()
            if turn:
                times[name].wall.append(perf_counter() - wall)
                times[name].cpu.append(process_time() - cpu)
    return times


def summary(times: Mapping[str, Times], against: str) -> dict[str, dict[str, float]]:
    """Medians and quartiles, and how many times as fast as the method `against`, turn by turn."""
    result = {}
    for name, each in times.items():
        ratios = [p / own for p, own in zip(times[against].wall, each.wall, strict=True)]
        low, middle, high = statistics.quantiles(each.wall, n=4)
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        result[name] = {
            "wall_seconds": middle,
            "wall_quartile_low_seconds": low,
            "wall_quartile_high_seconds": high,
            "cpu_seconds": statistics.median(each.cpu),
            "speedup": ratio,
            "speedup_quartile_low": ratio_low,
            "speedup_quartile_high": ratio_high,
        }
    return result


def speedups(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """Lay out what `summary` returns."""
    table = Table("step", "s", "quartiles", "CPU s", "x as fast", "quartiles")
    for name, row in figures.items():
        low, high = row["wall_quartile_low_seconds"], row["wall_quartile_high_seconds"]
        slow, fast = row["speedup_quartile_low"], row["speedup_quartile_high"]
        table.add_row(
            name,
            f"{row['wall_seconds']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['speedup']:.2f}",
            f"{slow:.2f} to {fast:.2f}",
        )
    return table


def machine() -> dict[str, object]:
    """Describe the machine and the software that the figures depend on."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }

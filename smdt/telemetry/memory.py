"""Device memory of a rank, read at a scrape and never in a step."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def memory_readers(device: torch.device) -> Mapping[str, Callable[[], float]]:
    """Return functions that read the memory of a device, in bytes, by kind.

    On a CPU that is the memory of this process: `resident` now and at its `peak`. On an
    accelerator it is torch's: `allocated` to tensors, now and at its `peak`, and `reserved`.
    """
    if device.type == "cpu":
        return {
            "resident": partial(process_bytes, "VmRSS"),
            "peak": partial(process_bytes, "VmHWM"),
        }
    return {
        "allocated": partial(torch.accelerator.memory_allocated, device),
        "peak": partial(torch.accelerator.max_memory_allocated, device),
        "reserved": partial(torch.accelerator.memory_reserved, device),
    }


def process_bytes(field: str, status: Path = STATUS) -> float:
    """Return a size that Linux reports for this process; NaN if it does not."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(lines[field].removesuffix("kB")) * 1024
    except (OSError, KeyError, ValueError):
        return float("nan")

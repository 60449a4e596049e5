"""Timings and scalars on the device, read when the device has finished.

An accelerator works behind the program that feeds it: to read a value at once would make the
program wait for everything that it has asked for. What telemetry wants to know is therefore noted
in the stream of work, and read one step later. On a CPU all is done at once.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def new_mark(device: torch.device) -> torch.Event:
    """Return a timing event of an accelerator's stream."""
    return torch.Event(device, enable_timing=True)


class DeviceTimer:
    """Device time of a block, measured with events.

    Args:
        device: whose work is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._marks = None if device.type == "cpu" else (new_mark(device), new_mark(device))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the work of the block; once."""
        if self._marks is None:
            start = time.perf_counter()
            try:
                yield
            finally:
                self._seconds = time.perf_counter() - start
            return
        first, last = self._marks
        first.record()
        try:
            yield
        finally:
            last.record()

    def seconds(self) -> float:
        """Wait until the device is done with the block; return how long that took it."""
        if self._marks is not None:
            first, last = self._marks
            last.synchronize()
            self._seconds = first.elapsed_time(last) / 1000
            self._marks = None
        return self._seconds


class DeviceScalars:
    """Numbers that a step made, on their way from the device.

    Args:
        values: scalars by name, tensors of one element or numbers.
    """

    def __init__(self, values: Mapping[str, Tensor | float]) -> None:
        self._names = list(values)
        away = {
            name: value.detach()
            for name, value in values.items()
            if isinstance(value, Tensor) and value.device.type != "cpu"
        }
        self._here = {name: float(value) for name, value in values.items() if name not in away}
        self._away = list(away)
        if away:
            stacked = torch.stack([value.reshape(()).double() for value in away.values()])
            # Only pinned memory is written asynchronously.
            self._copies = torch.empty(len(away), dtype=torch.float64, pin_memory=True)
            self._copies.copy_(stacked, non_blocking=True)
            self._arrived = new_mark(stacked.device)
            self._arrived.record()

    @property
    def ready(self) -> bool:
        """Whether reading them waits for nothing."""
        return not self._away

    def values(self) -> dict[str, float]:
        """Wait until the device has sent them; return them by name, in their order."""
        if self._away:
            self._arrived.synchronize()
            self._here |= zip(self._away, self._copies.tolist(), strict=True)
            self._away = []
        return {name: self._here[name] for name in self._names}

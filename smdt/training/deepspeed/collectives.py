"""Time inside collectives of this rank: the stage's, DeepSpeed's and the step status.

A step has many collectives, and a late rank makes the others wait in the next one, whatever it is.
The total time in collectives therefore shows the straggler: it has the least.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smdt.training.deepspeed.device_work import DeviceTimer
from smdt.training.deepspeed.patches import wrap_collectives


class CollectiveTimer:
    """Times the collectives of this process."""

    def __init__(self) -> None:
        self._watches: list[DeviceTimer] = []
        self._inside = False

    def watch(self) -> None:
        """Time every collective from now on; before DeepSpeed takes hold of the functions."""
        wrap_collectives(self._timed)

    def take(self) -> list[DeviceTimer]:
        """Return the watches of the collectives since the last call."""
        taken, self._watches = self._watches, []
        return taken

    def _timed(self, operation: Callable[..., Any]) -> Callable[..., object]:
        @functools.wraps(operation)
        def timed(*args: object, **options: object) -> object:
            if self._inside:  # one that another is made of
                return operation(*args, **options)
            watch = self._new_watch(_device_of((*args, *options.values())))
            self._inside = True
            try:
                with watch.running():
                    work = operation(*args, **options)
            finally:
                self._inside = False
            return work and _TimedWork(work, functools.partial(self._new_watch, watch.device))

        return timed

    def _new_watch(self, device: torch.device) -> DeviceTimer:
        self._watches.append(DeviceTimer(device))
        return self._watches[-1]


class _TimedWork:
    """An asynchronous collective until it is waited for."""

    def __init__(self, work: dist.Work, new_watch: Callable[[], DeviceTimer]) -> None:
        self._work: Any = work
        self._new_watch = new_watch

    def wait(self, *args: object) -> object:
        """As `dist.Work.wait`."""
        with self._new_watch().running():
            return self._work.wait(*args)

    def __getattr__(self, name: str) -> object:
        return getattr(self._work, name)


def _device_of(arguments: Iterable[object]) -> torch.device:
    """Return where the tensors of a collective are; one without is the CPU's."""
    for argument in arguments:
        inner = argument if isinstance(argument, list | tuple) else [argument]
        for value in inner:
            if isinstance(value, Tensor):
                return value.device
    return torch.device("cpu")

"""Step status of all ranks: one small all-reduce on the CPU, read one step late.

A rank enters it when its device work for the step is done: at once if the device is the CPU, else
when the next step has been handed to the device, so that no rank waits for it. It carries whether a
rank should stop, whether a rank saw a NaN, and each rank's share of the loss terms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from smdt.training.deepspeed.device_work import DeviceScalars


@dataclass(frozen=True)
class StepStatus:
    """Step status of all ranks."""

    step: int
    stop: bool
    finite: bool
    losses: Mapping[str, float] = field(default_factory=dict)


class StepStatusReducer:
    """Reduces the status of the previous step over all ranks, in a separate gloo group."""

    def __init__(self) -> None:
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), "every rank is in it"
        self._group = group
        self._pending: _PendingReduction | None = None

    def post(self, step: int, losses: DeviceScalars, stop: bool) -> StepStatus | None:
        """Say what this rank saw in `step`; return what all ranks saw in the step before.

        Args:
            step: the step that this rank has made, or has its device making.
            losses: this rank's shares, scalars that add up to the global terms over all ranks.
            stop: whether this rank was asked to stop.
        """
        previous = self.collect()
        self._pending = _PendingReduction(self._group, step, losses, stop)
        if losses.ready:
            self._pending.cast()
        return previous

    def collect(self) -> StepStatus | None:
        """Return the agreement about the last posted step, None if it was collected already."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.count()


class _PendingReduction:
    """Status of one step: this rank's, then the sum over all."""

    def __init__(
        self, group: dist.ProcessGroup, step: int, losses: DeviceScalars, stop: bool
    ) -> None:
        self._group = group
        self._step = step
        self._losses = losses
        self._stop = stop
        self._cast: tuple[torch.Tensor, dist.Work] | None = None

    def cast(self) -> tuple[torch.Tensor, dist.Work]:
        """Enter the all-reduce, once the device is done with the step."""
        if self._cast is None:
            shares = [share for _, share in sorted(self._losses.values().items())]
            finite = all(math.isfinite(share) for share in shares)
            # A NaN share affects the reduced loss only, not the flags.
            flags = [float(self._stop), float(not finite)]
            vector = torch.tensor([*flags, *shares], dtype=torch.float64)
            work = dist.all_reduce(vector, group=self._group, async_op=True)
            assert work is not None
            self._cast = vector, work
        return self._cast

    def count(self) -> StepStatus:
        """Wait until all ranks have entered; return what they agree on."""
        vector, work = self.cast()
        work.wait()
        stop, not_finite, *sums = vector.tolist()
        losses = dict(zip(sorted(self._losses.values()), sums, strict=True))
        return StepStatus(self._step, stop=stop > 0, finite=not_finite == 0, losses=losses)

"""What the ranks agree on at each step: one small all-reduce on the CPU, read one step late.

A rank enters it when its device work for the step is done. It carries whether anybody was asked
to stop, whether anybody saw a NaN, and each rank's share of the loss terms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from smdt.telemetry.metrics import TrainingMetrics, added_seconds


@dataclass(frozen=True)
class Agreement:
    """What all ranks know about one finished step."""

    step: int
    stop: bool
    finite: bool
    losses: Mapping[str, float] = field(default_factory=dict)


class Control:
    """The ranks' agreement about the step before, over a gloo group of its own.

    Args:
        metrics: where the time blocked in the all-reduce is counted.
    """

    def __init__(self, metrics: TrainingMetrics) -> None:
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), "every rank is in it"
        self._group = group
        self._metrics = metrics
        self._pending: tuple[int, list[str], torch.Tensor, dist.Work] | None = None

    def post(self, step: int, losses: Mapping[str, torch.Tensor], stop: bool) -> Agreement | None:
        """Say what this rank saw in `step`; return what all ranks saw in the step before.

        Args:
            step: the step that this rank has finished.
            losses: this rank's shares, scalars that add up to the global terms over all ranks.
            stop: whether this rank was asked to stop.
        """
        previous = self.collect()
        terms = sorted(losses)
        shares = [float(losses[term]) for term in terms]
        finite = all(math.isfinite(share) for share in shares)
        # A NaN share would hide the other ranks' flags from nobody but the loss itself.
        vector = torch.tensor([float(stop), float(not finite), *shares], dtype=torch.float64)
        work = dist.all_reduce(vector, group=self._group, async_op=True)
        assert work is not None
        self._pending = (step, terms, vector, work)
        return previous

    def collect(self) -> Agreement | None:
        """Return the agreement about the last posted step, None if it was collected already."""
        if self._pending is None:
            return None
        step, terms, vector, work = self._pending
        self._pending = None
        with added_seconds(self._metrics.collective_wait_seconds):
            work.wait()
        stop, not_finite, *sums = vector.tolist()
        losses = dict(zip(terms, sums, strict=True))
        return Agreement(step, stop=stop > 0, finite=not_finite == 0, losses=losses)

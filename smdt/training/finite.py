"""What becomes of steps whose loss or gradient is not finite: they change nothing, a few in a row.

Weights that a NaN has reached are lost, so an update with one is never made. A batch that makes one
now and then costs a step; when every batch does, the run ends and names what it was on.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data_shards.errors import UserError

SHOWN_KEYS = 8
"""So many samples the sentence names; `metrics.jsonl` has all."""

_log = logging.getLogger(__name__)


class FiniteAdamW(torch.optim.AdamW):
    """AdamW in one pass that skips a step whose gradient is not finite.

    DeepSpeed's own optimizers do, but it steps this one as it is: in fp32 without ZeRO. The device
    decides, so that nobody waits for it; the gradients are the same on all ranks by then.

    Attributes:
        skipped_steps: how many it skipped, a scalar on the device.
    """

    found_inf: Tensor
    """1 where the step is to be skipped: what a fused step of torch looks at."""

    skipped_steps: Tensor | float = 0.0

    def guard(self) -> None:
        """Look at the gradients before every step from now on."""
        self.register_step_pre_hook(self._look)

    def _look(self, *_: object) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.found_inf = (~torch.isfinite(torch.nn.utils.get_total_norm(gradients))).float()
        self.skipped_steps = self.found_inf + self.skipped_steps


class Patience:
    """How many steps in a row a run may lose.

    Args:
        limit: so many; one more ends it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lost = 0

    def keep(self) -> None:
        """Say that a step was made."""
        self._lost = 0

    def lose(self, step: int, losses: Mapping[str, float], keys: Sequence[str]) -> None:
        """Say that a step was skipped.

        Args:
            step: its number.
            losses: its loss terms.
            keys: of the samples of its global batch.

        Raises:
            UserError: it was one too many.
        """
        self._lost += 1
        more = len(keys) - SHOWN_KEYS
        names = ", ".join(keys[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")
        terms = ", ".join(f"{term} {value:g}" for term, value in losses.items())
        lost = f"step {step}: the loss ({terms}) or its gradient is not finite on {names}"
        _log.warning("%s; the step is skipped", lost)
        if self._lost > self._limit:
            raise UserError(
                f"{lost}; of {self._lost} steps in a row none could be made: look at the samples "
                "(lost_keys in metrics.jsonl), lower optimizer.learning_rate or raise "
                "schedule.warmup_steps, then start again from the last checkpoint"
            )

"""How many steps in a row may be skipped because their loss or gradient is not finite.

A batch that makes a NaN now and then costs a step; when every batch does, the run ends and names
the samples.
"""

import logging
from collections.abc import Mapping, Sequence

from data_shards.base.errors import UserError

SHOWN_KEYS = 8
"""Number of samples that the sentence names; `metrics.jsonl` has all."""

_log = logging.getLogger(__name__)


class NonFiniteGuard:
    """Limits the number of skipped steps in a row.

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
                f"{lost}; of {self._lost} steps in a row none could be made: check the samples "
                "(lost_keys in metrics.jsonl), lower optimizer.learning_rate or raise "
                "schedule.warmup_steps, then start again from the last checkpoint"
            )

"""Restart budget of a run and the waits between restarts (pure)."""

from dataclasses import dataclass, replace

LONGEST_WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Restarts:
    """Counts the restarts that brought nothing.

    Attributes:
        limit: how many in a row are allowed.
        first_wait_seconds: before the first of them; each further one waits twice as long.
        step: of the newest checkpoint.
        in_vain: restarts since that one was written.
    """

    limit: int
    first_wait_seconds: float
    step: int
    in_vain: int = 0

    def after_attempt(self, step: int) -> "Restarts":
        """Return the count after an attempt that left `step` as the newest checkpoint."""
        if step > self.step:
            return replace(self, step=step, in_vain=0)
        return replace(self, in_vain=self.in_vain + 1)

    @property
    def exhausted(self) -> bool:
        """Whether no further restart is allowed."""
        return self.in_vain > self.limit

    @property
    def wait_seconds(self) -> float:
        """Return how long to wait before the next attempt."""
        doublings = max(0, self.in_vain - 1)
        return min(LONGEST_WAIT_SECONDS, self.first_wait_seconds * 2.0**doublings)

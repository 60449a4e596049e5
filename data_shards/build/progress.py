"""Progress of a build: callbacks, and the totals of one run."""

from collections import Counter
from time import perf_counter
from typing import NamedTuple

from data_shards.format.index import ShardSummary
from data_shards.format.sample import JSON


class Work(NamedTuple):
    """Shards and source rows of a job at its start, and how many are done."""

    shards: int
    shards_done: int
    rows: int
    rows_done: int


class BuildCallback:
    """Callbacks on the progress of a build; this one ignores them."""

    def begin(self, work: Work) -> None:
        """The job starts."""

    def advance(self, rows: int) -> None:
        """This many more rows were read, accepted or not."""

    def finish(self, summary: ShardSummary) -> None:
        """A shard is written."""


class RunTotals(BuildCallback):
    """What one run of a job wrote, without what was finished before."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self.shards = 0
        self.samples = 0
        self.bytes = 0
        """Bytes of the tars."""
        self.rejected: Counter[str] = Counter()
        """Rows by reason."""

    def finish(self, summary: ShardSummary) -> None:
        """Add a shard."""
        self.shards += 1
        self.samples += summary.samples
        self.bytes += summary.tar_bytes
        self.rejected.update(rejection.reason for rejection in summary.rejected)

    def figures(self) -> dict[str, JSON]:
        """The totals until now, seconds since the start and samples per second."""
        seconds = perf_counter() - self._start
        return {
            "shards": self.shards,
            "samples": self.samples,
            "bytes": self.bytes,
            "rejected": dict(sorted(self.rejected.items())),
            "seconds": round(seconds, 3),
            "samples_per_second": round(self.samples / seconds, 3),
        }

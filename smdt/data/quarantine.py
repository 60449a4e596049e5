"""The list of samples that training could not read, and the end of a run that reads too many."""

import fcntl
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import DataError
from smdt.telemetry.metrics import TrainingMetrics


@dataclass(frozen=True)
class QuarantineLine:
    """A sample that was replaced; a line of `quarantine.jsonl`."""

    epoch: int
    batch: int
    """Global batch number in the epoch."""
    position: int
    """Slot in the global batch."""
    key: str
    source_id: str
    shard: int
    part: str
    reason: str
    detail: str
    stand_in: str
    """Key of the replacement that was tried."""
    rank: int


class Quarantine:
    """The file that all ranks of a run append to, and its bound.

    It holds the damage of batches that were handed to a step, and of no others: what is read ahead
    is listed when its turn comes, and a run that resumes drops what it will read again.

    Args:
        path: of `quarantine.jsonl`; its folder must exist.
        max_quarantined: distinct samples that the run may replace, over all ranks.
        metrics: counts this rank's replacements by reason.
    """

    def __init__(self, path: Path, max_quarantined: int, metrics: TrainingMetrics) -> None:
        self._path = path
        self._max_quarantined = max_quarantined
        self._metrics = metrics
        self._keys: set[str] = set()
        self._counted_bytes = 0

    def add(self, lines: Sequence[QuarantineLine]) -> None:
        """List the samples that were replaced in a batch.

        Raises:
            DataError: the run has replaced more than `max_quarantined` now, or the list can't be
                written.
        """
        if not lines:
            return
        for line in lines:
            self._metrics.quarantined_samples(line.reason).inc()
        try:
            self._append("".join(json.dumps(asdict(line)) + "\n" for line in lines))
        except OSError as error:
            raise DataError(f"{self._path} can't be written: {error.strerror}.") from None
        if len(self._keys) > self._max_quarantined:
            raise DataError(
                f"{len(self._keys)} samples could not be read, more than data.max_quarantined="
                f"{self._max_quarantined}: they are listed in {self._path}."
            )

    def rewind(self, epoch: int, batch: int) -> None:
        """Drop the lines of this batch and of those after it; for one rank, before any adds.

        Raises:
            DataError: the list can't be written.
        """
        try:
            text = self._path.read_bytes() if self._path.exists() else b""
            lines = text.splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and _at(line) < (epoch, batch)]
            if kept != lines:
                write_atomic(self._path, b"".join(kept))
        except OSError as error:
            raise DataError(f"{self._path} can't be written: {error.strerror}.") from None

    def _append(self, text: str) -> None:
        """Append whole lines, and count what all ranks have listed."""
        with self._path.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the rank that exceeds the limit sees it
            file.write(text.encode())
            file.seek(self._counted_bytes)
            added = file.read()
        self._counted_bytes += len(added)
        self._keys |= {json.loads(line)["key"] for line in added.splitlines()}


def _at(line: bytes) -> tuple[int, int]:
    """The epoch and the batch of a line."""
    fields = json.loads(line)
    return fields["epoch"], fields["batch"]

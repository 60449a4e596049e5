"""The list of samples that training could not read, and the end of a run that reads too many."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from smdt.data.split import DataError
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
    """Key of the sample that was tried in its stead."""
    rank: int


class Quarantine:
    """Appends whole lines to a file that all ranks share, and counts this rank's samples.

    Args:
        path: of `quarantine.jsonl`; its folder must exist.
        max_quarantined: distinct samples that this rank may replace.
        metrics: counts replacements by reason.
    """

    def __init__(self, path: Path, max_quarantined: int, metrics: TrainingMetrics) -> None:
        self._path = path
        self._max_quarantined = max_quarantined
        self._metrics = metrics
        self._keys: set[str] = set()
        self._lock = Lock()

    def add(self, line: QuarantineLine) -> None:
        """List a replaced sample.

        Raises:
            DataError: there are more than `max_quarantined` now, or the list can't be written.
        """
        self._metrics.quarantined_samples(line.reason).inc()
        self._append(json.dumps(asdict(line)) + "\n")
        with self._lock:
            self._keys.add(line.key)
            count = len(self._keys)
        if count > self._max_quarantined:
            raise DataError(
                f"Rank {line.rank} could not read {count} samples, more than "
                f"data.max_quarantined={self._max_quarantined}: they are listed in {self._path}."
            )

    def _append(self, line: str) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, line.encode())  # one write: lines of ranks never mix
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"{self._path} can't be written: {error.strerror}.") from None

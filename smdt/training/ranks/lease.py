"""A run's lease: the file by which a launcher says that it lives, and which attempt is the run's.

The launcher touches it every second. A rank exits when the file names another attempt, or when
it was not touched for a while: so no rank outlives its launcher, on any host, and the ranks of an
unreachable host cannot disturb the next attempt.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.base.atomic import write_atomic

LEASE_VARIABLE = "SMDT_LEASE"
"""Environment variable of a rank: path of its run's lease."""
ATTEMPT_VARIABLE = "SMDT_ATTEMPT"
"""Environment variable of a rank: the attempt that it belongs to."""
LEASE_TIMEOUT_SECONDS = 30.0
"""How long a rank continues without a heartbeat of its launcher."""


@dataclass(frozen=True)
class LeaseRecord:
    """Contents of a lease.

    Attributes:
        attempt: whose ranks may run; empty between two attempts.
        host: where the launcher runs.
        pid: of the launcher there; 0 when it has gone.
    """

    attempt: str
    host: str
    pid: int

    def write(self, file: Path) -> None:
        """Replace the lease."""
        write_atomic(file, (json.dumps(asdict(self)) + "\n").encode())


def read(file: Path) -> tuple[LeaseRecord, int]:
    """Return what the lease says and when it was last touched, in nanoseconds.

    Raises:
        FileNotFoundError: there is none, or the file holds something else.
        OSError: it cannot be read now.
    """
    # Opening makes a network file system read again; the time alone may come from its cache.
    with file.open() as opened:
        try:
            holder = LeaseRecord(**json.loads(opened.read()))
        except (TypeError, ValueError) as error:  # a damaged disk, or another program
            raise FileNotFoundError(f"{file} is not a lease: {error}") from error
        return holder, os.fstat(opened.fileno()).st_mtime_ns


class LeaseMonitor:
    """A rank's view of the lease.

    Args:
        file: the lease.
        attempt: this rank's.
        clock: seconds; another one for tests.
    """

    def __init__(
        self, file: Path, attempt: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._attempt = attempt
        self._clock = clock
        self._touched_ns = 0
        self._since = clock()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "LeaseMonitor | None":
        """Return the watch of a rank that a supervising launcher started, None for any other."""
        if LEASE_VARIABLE not in environment:
            return None
        return cls(Path(environment[LEASE_VARIABLE]), environment[ATTEMPT_VARIABLE])

    def superseded(self) -> bool:
        """Return whether the lease names another attempt."""
        try:
            return read(self._file)[0].attempt != self._attempt
        except OSError:
            return False

    def ended(self) -> bool:
        """Return whether this rank should exit: superseded, or the lease expired."""
        touched_ns = self._touched_ns
        try:
            holder, touched_ns = read(self._file)
        except OSError:  # a short outage of the storage does not end the rank
            pass
        else:
            if holder.attempt != self._attempt:
                return True
        if touched_ns != self._touched_ns:
            self._touched_ns, self._since = touched_ns, self._clock()
        return self._clock() - self._since > LEASE_TIMEOUT_SECONDS

"""Holding a run's lease: a run folder has one writer at a time.

The holder is the launcher (`smdt train`, `smdt launch up`) or, where another program started the
ranks, rank 0.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Self

from data_shards.base.errors import UserError
from smdt.training.ranks.lease import LeaseRecord, read

HEARTBEAT_SECONDS = 1.0
SETTLE_SECONDS = 0.2
"""After which two that took the lease at the same moment see whose it is."""


class LeaseHolder:
    """Holds the lease while it is open; one process at a time does.

    Args:
        file: the lease.
        when_lost: called in a thread of its own when another process has taken the run over.

    Raises:
        UserError: (when opened) a living process holds it.
    """

    def __init__(self, file: Path, when_lost: Callable[[], None] = lambda: None) -> None:
        self._file = file
        self._when_lost = when_lost
        self._holder = LeaseRecord("", socket.gethostname(), os.getpid())
        self._lock = Lock()
        self._closing = Event()
        self._lost = Event()
        self._beats = Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        other = active_holder(self._file)
        if other is None:
            self._holder.write(self._file)
            time.sleep(SETTLE_SECONDS)
            found = read(self._file)[0]
            other = None if found == self._holder else found
        if other is not None:
            raise UserError(
                f"the run in {self._file.parent} has a launcher, process {other.pid} on "
                f"{other.host}; stop that one first (smdt launch stop), or set run.out to another "
                "folder"
            )
        self._beats.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._closing.set()
        self._beats.join()
        if not self.lost:
            with suppress(OSError):  # a full disk: the ranks leave without it too, only later
                LeaseRecord("", "", 0).write(self._file)

    @property
    def lost(self) -> bool:
        """Whether another process has taken the run over."""
        return self._lost.is_set()

    def begin(self, attempt: str) -> None:
        """Make `attempt` the run's: ranks of any other leave.

        Raises:
            OSError: the lease cannot be written.
            UserError: another launcher holds it.
        """
        with self._lock:
            if self.lost or self._is_anothers():
                self._lost.set()
                raise UserError(f"Another launcher has taken over the run of {self._file}.")
            self._holder = LeaseRecord(attempt, self._holder.host, self._holder.pid)
            self._holder.write(self._file)

    def end(self) -> None:
        """Tell all ranks to leave, unless they are another launcher's by now."""
        with suppress(OSError, UserError):
            self.begin("")

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_SECONDS):
            with self._lock, suppress(OSError):  # away for a moment: the ranks are patient
                if self._is_anothers():
                    self._lost.set()
                    break
                os.utime(self._file)
        if self.lost:
            self._when_lost()

    def _is_anothers(self) -> bool:
        try:
            return read(self._file)[0] != self._holder
        except FileNotFoundError:
            return False


def active_holder(file: Path) -> LeaseRecord | None:
    """Return the active holder of a lease, or None; takes up to three heartbeats."""
    try:
        holder, touched_ns = read(file)
        if holder.pid == 0:
            return None
        end = time.monotonic() + 3 * HEARTBEAT_SECONDS
        while time.monotonic() < end:
            time.sleep(HEARTBEAT_SECONDS / 4)
            holder, now_ns = read(file)
            if now_ns != touched_ns:
                return holder if holder.pid else None
    except FileNotFoundError:
        pass
    return None

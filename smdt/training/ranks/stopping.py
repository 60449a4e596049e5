"""Signals that stop a rank, and detection of a lost launcher."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from smdt.training.ranks.lease import LeaseMonitor

LAUNCHER_PID_VARIABLE = "SMDT_LAUNCHER_PID"
"""Environment variable: the process on the same machine whose death ends the ranks."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """True from the moment that the run folder's stop file exists or a scheduler's signal came.

    Args:
        file: `<run>/stop`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = False

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1 of this process as requests; only in the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (signal's form)
        self._signalled = True

    def __bool__(self) -> bool:
        return self._signalled or self._file.exists()


def exit_with_parent(poll_seconds: float = 1.0) -> None:
    """End this process at once when what started it is gone.

    DeepSpeed's launcher does not end its ranks when it is killed, and nothing ends DeepSpeed's
    launcher. A process that starts it sets `LAUNCHER_PID_VARIABLE` to its own process id, or holds
    a lease if it starts ranks on other machines.
    """
    parent, launcher = os.getppid(), os.environ.get(LAUNCHER_PID_VARIABLE)
    lease = LeaseMonitor.of(os.environ)
    # A launcher on this machine may be suspended; its ranks continue.
    gone = None if lease is None else lease.ended if launcher is None else lease.superseded

    def watch() -> None:
        while (
            os.getppid() == parent
            and (launcher is None or Path("/proc", launcher).exists())
            and (gone is None or not gone())
        ):
            time.sleep(poll_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()

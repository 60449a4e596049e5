"""End every process of a run on this host, so that an attempt leaves no orphans."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from smdt.training.ranks.lease import LEASE_VARIABLE

SECONDS = 10.0
"""How long the kernel may take to end a process."""


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        killed: processes that had to be killed.
        left: process ids that did not die.
    """

    killed: int
    left: list[int]


def sweep(lease: str, seconds: float = SECONDS) -> SweepResult:
    """Kill the processes whose environment names this lease, stopped ones too, and wait for it."""
    killed: set[int] = set()
    end = time.monotonic() + seconds
    while found := processes(lease):
        if time.monotonic() > end:
            return SweepResult(len(killed), found)
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(0.05)
    return SweepResult(len(killed), [])


def processes(lease: str) -> list[int]:
    """Return the process ids of this host whose environment names the lease, but for our own.

    One that has ended and was not waited for has no environment any more.
    """
    wanted = f"{LEASE_VARIABLE}={lease}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if wanted in environment:
            found.append(int(entry.name))
    return found

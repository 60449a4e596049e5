"""Looking after a run that a test has started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DEEPSPEED_FILES = ROOT / "configs" / "deepspeed"


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 300):
    """Wait until `condition` is true while the run goes on; return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


def ranks_of(config: Path) -> list[int]:
    """Process ids of the ranks that train with `config`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        # A rank's argv has its local rank; the launchers' have not.
        if str(config).encode() in argv and any(a.startswith(b"--local_rank") for a in argv):
            found.append(int(entry.name))
    return found


def kill_ranks(config: Path) -> None:
    """Kill -9 every rank of a run."""
    pids = ranks_of(config)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

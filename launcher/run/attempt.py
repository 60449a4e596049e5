"""One attempt of a run: `deepspeed` started, watched, and ended in bounded time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from launcher.run.causes import AttemptOutcome
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder

POLL_SECONDS = 0.5
GRACE_SECONDS = 15.0
"""From the first sign of an end until what is left is killed: the others say why, or save."""

_ENDED = re.compile(r"pdsh@\S+: (\S+): ssh exited with exit code (\d+)")
_PREFIX = re.compile(r"^\S+: ")


class Output:
    """Output of the ranks: shown, written to a file, and searched for sessions that failed.

    Attributes:
        failures: host and exit code of each, first one first.
        last_line: the last that a rank printed.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.failures: list[tuple[str, int]] = []
        self.last_line = ""
        self._process = process
        self._log = log
        self._thread = Thread(target=self._read, name="output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(OSError, ValueError):  # a terminal that is gone must not stop the ranks
                sys.stderr.write(line)
            with suppress(OSError), self._log.open("a") as file:  # a full disk ends no run
                file.write(line)
            ended = _ENDED.search(line)
            if ended is not None:
                self.failures.append((ended[1], int(ended[2])))
            elif line.strip() and not line.startswith("pdsh@") and "[INFO]" not in line:
                self.last_line = _PREFIX.sub("", line).strip()

    def close(self, seconds: float = 5.0) -> None:
        """Wait for the rest of it."""
        self._thread.join(seconds)


class Attempt:
    """A running attempt.

    Args:
        command: `deepspeed` and its arguments.
        environment: of that process.
        folder: the run folder.
        name: the attempt's, as the ranks know it.
        log: file of its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: RunFolder,
        name: str,
        log: Path,
    ) -> None:
        self._folder = folder
        self._name = name
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's interrupt is for the launcher to deal with
        )
        self._output = Output(self._process, log)

    def watch(self, stall_seconds: float, abandoned: Callable[[], bool]) -> float:
        """Wait until the attempt ends by itself, stalls, or has had its grace.

        Args:
            stall_seconds: how long nothing may move.
            abandoned: whether to leave now.

        Returns:
            How long nothing had moved if that is why it ended, else 0.
        """
        moved = progress_marker(self._folder)
        since = time.monotonic()
        grace_ends: float | None = None
        while self._process.poll() is None and not abandoned():
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            state = self.state()
            if self._output.failures or (state is not None and state["status"] != "running"):
                grace_ends = grace_ends or now + GRACE_SECONDS
            if grace_ends is not None and now > grace_ends:
                return 0.0
            if (sign := progress_marker(self._folder)) != moved:
                moved, since = sign, now
            if now - since > stall_seconds:
                return now - since
        return 0.0

    def state(self) -> dict[str, Any] | None:
        """Return what `state.json` says, None while it is of another attempt."""
        try:
            return self._folder.read_state_of(self._name)
        except (OSError, ValueError):  # storage that is away for a moment
            return None

    def kill(self) -> None:
        """End what runs on this machine: `deepspeed`, pdsh and its ssh clients."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def evidence(self, stalled_seconds: float) -> AttemptOutcome:
        """Return what was seen, once all of it has ended."""
        self._output.close()
        code = self._process.returncode
        return AttemptOutcome(
            state=self.state(),
            failures=tuple(self._output.failures),
            exit_code=None if code is None or code < 0 else code,
            stalled_seconds=stalled_seconds,
            last_line=self._output.last_line,
        )


def progress_marker(folder: RunFolder) -> tuple[object, ...]:
    """Return something that changes whenever a run makes a step, saves, evaluates, or ends."""
    newest = [path.name for path in checkpoint.published(folder.checkpoints)[:1]]
    return (*newest, *(_stamp(file) for file in (folder.metrics, folder.state)))


def _stamp(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0

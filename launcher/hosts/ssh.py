"""Ask hosts over ssh, all at once."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any

SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"),
)
"""ssh options: never ask for a password, and end a session 30 s after its link is cut."""

AT_ONCE = 64
"""Sessions that are open together."""
REST_SECONDS = 1.0
"""How long the rest of an answer may take once ssh has ended."""
LAST_BYTES = 4096
"""Bytes of ssh's stderr that are read; its last line is the reason of a failure."""


@dataclass(frozen=True)
class HostResponse:
    """The response of a host.

    Attributes:
        content: the answer, empty if there is none.
        error: why there is none.
        skew_seconds: how far the host's clock is ahead of ours, None if it said nothing.
    """

    content: dict[str, Any]
    error: str = ""
    skew_seconds: float | None = None


def call_hosts(
    questions: Mapping[str, tuple[str, Mapping[str, Any]]], seconds: float
) -> dict[str, HostResponse]:
    """Ask each host its question.

    Args:
        questions: verb of `launcher.hosts.remote` and its arguments, by host.
        seconds: after which a host has not answered.

    Returns:
        An answer for each host, in the same order.
    """
    if not questions:
        return {}
    with ThreadPoolExecutor(min(AT_ONCE, len(questions))) as pool:
        pending = {
            host: pool.submit(call_host, host, verb, question, seconds)
            for host, (verb, question) in questions.items()
        }
        return {host: answer.result() for host, answer in pending.items()}


def call_host(host: str, verb: str, question: Mapping[str, Any], seconds: float) -> HostResponse:
    """Ask one host, in our folder and with our interpreter, which must be there too."""
    program = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.quote(sys.executable)}"
    command = ["ssh", *SSH_OPTIONS, host, f"{program} -m launcher.hosts.remote {verb}"]
    # Files instead of pipes: nothing waits for a reader, or for a process that keeps a pipe open.
    with TemporaryFile() as asked, TemporaryFile() as errors:
        asked.write(json.dumps(question).encode())
        asked.seek(0)
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # a terminal's interrupt is for the launcher to deal with
        )
        heard = _ResponseReader(process)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        heard.close()
        said = _last_line(errors)
    if heard.answer is not None and code == 0:
        return HostResponse(heard.answer, skew_seconds=heard.skew_seconds)
    if code is None:
        return HostResponse({}, f"no answer within {seconds:g} s", heard.skew_seconds)
    return HostResponse({}, said or f"ssh ended with {code}", heard.skew_seconds)


class _ResponseReader:
    """The output of a host: its clock, compared on arrival, and its answer; greetings are skipped.

    Attributes:
        skew_seconds: how far its clock is ahead, None before it has printed its clock.
        answer: the last other JSON object that it printed, None before the first.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.skew_seconds: float | None = None
        self.answer: dict[str, Any] | None = None
        assert process.stdout is not None
        self._stream = process.stdout
        self._thread = Thread(target=self._read, name="ssh", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                now = time.time()
                try:
                    content = json.loads(line)
                except ValueError:  # a greeting of the host's
                    continue
                if not isinstance(content, dict):
                    continue
                if self.skew_seconds is None and content.keys() == {"clock"}:
                    self.skew_seconds = float(content["clock"]) - now
                else:
                    self.answer = content

    def close(self) -> None:
        """Wait for the remaining output; a background process of ssh may keep the pipe open."""
        self._thread.join(REST_SECONDS)


def _last_line(file: IO[bytes]) -> str:
    """Return the last line of a file that is not blank, empty if all are."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
    lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

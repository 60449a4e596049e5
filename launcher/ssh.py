"""Ask hosts over ssh, all at once."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from launcher.command import SSH_OPTIONS

AT_ONCE = 64
"""Sessions that are open together."""


@dataclass(frozen=True)
class Answer:
    """What a host answered.

    Attributes:
        content: the answer, empty if there is none.
        error: why there is none.
        skew_seconds: how far the host's clock is ahead of ours, None if it said nothing.
    """

    content: dict[str, Any]
    error: str = ""
    skew_seconds: float | None = None


def ask_all(
    questions: Mapping[str, tuple[str, Mapping[str, Any]]], seconds: float
) -> dict[str, Answer]:
    """Ask each host its question.

    Args:
        questions: verb of `launcher.remote` and its arguments, by host.
        seconds: after which a host has not answered.

    Returns:
        An answer for each host, in the same order.
    """
    if not questions:
        return {}
    with ThreadPoolExecutor(min(AT_ONCE, len(questions))) as pool:
        pending = {
            host: pool.submit(ask, host, verb, question, seconds)
            for host, (verb, question) in questions.items()
        }
        return {host: answer.result() for host, answer in pending.items()}


def ask(host: str, verb: str, question: Mapping[str, Any], seconds: float) -> Answer:
    """Ask one host, in our folder and with our interpreter, which must be there too."""
    program = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.quote(sys.executable)}"
    with subprocess.Popen(
        ["ssh", *SSH_OPTIONS, host, f"{program} -m launcher.remote {verb}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's interrupt is for the launcher to deal with
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        timer = Timer(seconds, process.kill)
        timer.start()
        with suppress(BrokenPipeError):  # it says on stderr why it does not listen
            process.stdin.write(json.dumps(question))
            process.stdin.close()
        skew_seconds = _skew(process.stdout.readline())
        output, errors = process.stdout.read(), process.stderr.read()
        code = process.wait()
        in_time = timer.is_alive()
        timer.cancel()
    lines = output.splitlines()
    if code == 0 and lines:
        return Answer(json.loads(lines[-1]), skew_seconds=skew_seconds)
    if not in_time:
        return Answer({}, f"no answer within {seconds:g} s", skew_seconds)
    said = [line for line in errors.splitlines() if line.strip()]
    return Answer({}, said[-1].strip() if said else f"ssh ended with {code}", skew_seconds)


def _skew(line: str) -> float | None:
    now = time.time()
    try:
        return float(json.loads(line)["clock"]) - now
    except (ValueError, KeyError, TypeError):
        return None

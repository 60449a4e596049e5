"""From what was seen of an attempt to what comes next, and to the cause in one sentence (pure)."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

NextAction = Literal["done", "stopped", "again", "over"]
"""done: finished; stopped: on request; again: restart; over: a restart would not help."""

LOST_SSH = 255
"""What ssh exits with when its session broke off, or the program died by a signal."""


@dataclass(frozen=True)
class AttemptOutcome:
    """Exit codes and state of an attempt.

    Attributes:
        state: content of `state.json` from this attempt, None if it wrote none.
        failures: host and exit code of each session that ended badly, first one first.
        exit_code: of DeepSpeed's launcher, None if it had to be ended.
        stalled_seconds: how long nothing moved, 0 if that ended it.
        last_line: the last that a rank printed.
    """

    state: Mapping[str, Any] | None
    failures: Sequence[tuple[str, int]] = ()
    exit_code: int | None = None
    stalled_seconds: float = 0.0
    last_line: str = ""


def next_action(evidence: AttemptOutcome, *, asked_to_stop: bool) -> NextAction:
    """Decide what to do after an attempt, from `state.json` and never from exit codes.

    A run that saved and exited without a request, as after a scheduler's signal, continues.
    """
    state = evidence.state or {"status": "running"}
    match state["status"]:
        case "done":
            return "done"
        case "preempted":
            return "stopped" if asked_to_stop else "again"
        case "failed" if not state["retry"]:
            return "over"
    return "stopped" if asked_to_stop else "again"


def describe_failure(evidence: AttemptOutcome) -> str:
    """Return why an attempt ended, in one sentence."""
    state = evidence.state or {"status": "", "reason": ""}
    if evidence.stalled_seconds:
        return f"nothing moved for {evidence.stalled_seconds:.0f} s"
    if state["status"] == "preempted":
        return "a host was told to leave; all ranks saved"
    if evidence.failures:
        host, code = _origin(evidence.failures)
        number = _signal(code)
        if code == LOST_SSH:
            return f"the session on {host} broke off: its processes, the host or its link are gone"
        if number is not None:
            hint = ", often for lack of memory" if number == signal.SIGKILL else ""
            return f"a process on {host} was ended by {_name(number)}{hint}"
    if state["status"] == "failed":
        return _plain(state["reason"])
    if evidence.failures:
        host, code = _origin(evidence.failures)
        said = f": {evidence.last_line}" if evidence.last_line else ""
        return f"a rank on {host} ended with exit code {code}{said}"
    if evidence.exit_code is None:
        return "the launcher ended it"
    return f"DeepSpeed's launcher ended with exit code {evidence.exit_code} and no word of why"


def _origin(failures: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Return the failure that the others follow from: the first, or the first SIGKILL.

    Partners of a killed rank may end sooner than its own host says so, and nothing but the kernel
    or a user kills one rank.
    """
    killed = (failure for failure in failures if _signal(failure[1]) == signal.SIGKILL)
    return next(killed, failures[0])


def _signal(code: int) -> int | None:
    """Return the signal that an exit code stands for.

    A shell says 128 + n, DeepSpeed's launcher passes on Python's -n, which becomes 256 - n.
    """
    for number in (code - 128, 256 - code):
        if 0 < number <= 31 and code > 128:
            return number
    return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _plain(reason: str) -> str:
    """Return what a rank wrote, or, where torch wrote it, what it means."""
    if re.search(r"[Tt]imed out|[Tt]imeout", reason) and "run.timeout_seconds" not in reason:
        return (
            "a rank waited for another one until run.timeout_seconds were over: "
            "that one hangs, or its link is cut"
        )
    if re.search(r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe", reason):
        return "a rank lost the connection to another one"
    return reason.splitlines()[0] if reason else "a rank ended before its time"

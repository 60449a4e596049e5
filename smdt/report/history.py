"""Starts, saves and ends of a run's attempts (pure)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from smdt.report.chart import number

KILLED = "killed, or its host went away"
FAILED = "failed"


@dataclass
class Attempt:
    """From one start of the run to its end.

    Attributes:
        started: Unix time; None of one that failed before it could train.
        from_step: step that it resumed from.
        ranks: how many trained.
        saved: checkpoints that it published.
        last_saved: step of the last of them.
        end: how it ended; None of one that still trains.
    """

    started: float | None
    from_step: int | None = None
    ranks: int | None = None
    saved: int = 0
    last_saved: int | None = None
    end: str | None = None

    @property
    def when(self) -> str:
        """Format when it started."""
        if self.started is None:
            return "never"
        try:
            return datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        except (OverflowError, ValueError, OSError):
            return "at an unknown time"

    @property
    def has_failed(self) -> bool:
        """Whether it said that it failed."""
        return self.end is not None and self.end.startswith(FAILED)


def attempts(history: Iterable[Mapping[str, Any]], status: str) -> list[Attempt]:
    """Return the attempts of a run, the oldest first.

    Args:
        history: lines of `history.jsonl`.
        status: of the run now, of `state.json`.
    """
    found: list[Attempt] = []
    for line in history:
        last = found[-1] if found and found[-1].end is None else None
        step = _whole(line.get("step"))
        match line.get("event"):
            case "started":
                if last is not None:
                    last.end = KILLED
                found.append(Attempt(number(line.get("time")), step, _whole(line.get("ranks"))))
            case "saved" if last is not None:
                last.saved += 1
                last.last_saved = step
            case "failed":
                if last is None and (not found or not found[-1].has_failed):
                    last = Attempt(None)
                    found.append(last)
                if last is not None:  # else another rank of the same attempt has said why
                    last.end = f"{FAILED}: {line.get('reason', 'the reason is not known')}"
            case "done" | "preempted" as end if last is not None:
                last.end = end if step is None else f"{end} at step {step}"
    if found and found[-1].end is None and status != "running":
        found[-1].end = KILLED
    return found


def _whole(value: object) -> int | None:
    known = number(value)
    return None if known is None else int(known)

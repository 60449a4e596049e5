"""The folder of a run: what every file in it is called, and how each is written.

Whole files are replaced by one rename, lines are appended in one write: a reader
sees the old or the new content, never a part, also if the run is killed meanwhile.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from data_shards.base.atomic import write_atomic
from data_shards.base.errors import InputError
from data_shards.base.store import require_local
from smdt.training.ranks.lease import ATTEMPT_VARIABLE

Status = Literal["running", "done", "preempted", "failed"]
Event = Literal["started", "saved", "done", "preempted", "failed"]


class RunFolder:
    """Paths and files of one run below `root`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.environment = self.root / "environment.json"
        self.init = self.root / "init.json"
        self.state = self.root / "state.json"
        self.metrics = self.root / "metrics.jsonl"
        self.history = self.root / "history.jsonl"
        self.quarantine = self.root / "quarantine.jsonl"
        self.evaluation = self.root / "evaluation.json"
        self.references = self.root / "references.json"
        self.report = self.root / "report.html"
        self.stop = self.root / "stop"
        self.lease = self.root / "lease"
        self.checkpoints = self.root / "checkpoints"
        self.universal = self.root / "universal"
        self.neighbours = self.root / "neighbours"
        self.logs = self.root / "logs"
        self.targets = self.root / "targets"
        self.tensorboard = self.root / "tensorboard"

    def create(self) -> None:
        """Make the folders that ranks write into.

        Raises:
            InputError: the folder cannot be made or written, or is a URL.
        """
        require_local(self.root, "run.out")
        try:
            inner = (self.checkpoints, self.neighbours, self.logs, self.targets)
            for folder in (self.root, *inner):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"run folder {self.root}: {error.strerror}; set run.out to a folder you can write"
            ) from error

    def write_state(
        self, status: Status, step: int | None = None, reason: str = "", *, retry: bool = True
    ) -> None:
        """Replace `state.json`, from which restarts are decided.

        Args:
            status: of the run.
            step: optimisation steps done; None keeps what the file says.
            reason: why it failed, in one sentence.
            retry: whether starting a failed run again may help.
        """
        if step is None:
            step = (self.read_state() or {"step": 0})["step"]
        content = {"status": status, "step": step, "reason": reason, "retry": retry}
        write_json(self.state, content | {"attempt": os.environ.get(ATTEMPT_VARIABLE)})

    def read_state(self) -> dict[str, Any] | None:
        """Return what `state.json` says, None before the first start."""
        if not self.state.exists():
            return None
        state: dict[str, Any] = json.loads(self.state.read_text())
        return state

    def read_state_of(self, attempt: str | None) -> dict[str, Any] | None:
        """Return what an attempt wrote to `state.json`, None while it is another one's."""
        state = self.read_state()
        return state if state is not None and state.get("attempt") == attempt else None

    def device(self) -> str:
        """Return the kind of device that the run has trained on, `cpu` where nothing says it."""
        try:
            return str(json.loads(self.environment.read_text())["device"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none yet, or an older one
            return "cpu"

    def note(self, event: Event, **facts: object) -> None:
        """Append one line to `history.jsonl`: what happened to the run, and when."""
        line = json.dumps({"time": time.time(), "event": event, **facts}).encode()
        with self.history.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # the piece of a line that was cut short ends here
                    file.write(b"\n")
            file.write(line + b"\n")

    def read_history(self) -> Iterator[dict[str, Any]]:
        """Yield what happened to the run, the oldest first."""
        return _whole_lines(self.history)

    def read_quarantine(self) -> Iterator[dict[str, Any]]:
        """Yield the samples that were replaced."""
        return _whole_lines(self.quarantine)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the records of `metrics.jsonl`."""
        return _whole_lines(self.metrics)

    def rewind_metrics(self, step: int) -> None:
        """Drop the records after `step`: a resumed run writes them again."""
        kept = [
            record
            for record in self.read_metrics()
            if isinstance(record.get("step"), int) and record["step"] <= step
        ]
        write_atomic(self.metrics, b"".join(json.dumps(r).encode() + b"\n" for r in kept))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines; one that was cut short is left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            record = None
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
            if isinstance(record, dict):
                yield record


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as indented JSON, in one rename."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())

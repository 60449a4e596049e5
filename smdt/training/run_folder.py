"""The folder of a run: what every file in it is called, and how each is written.

Whole files are replaced by one rename, lines are appended in one write: whoever reads while a run
dies sees the old or the new, never half.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from data_shards.atomic import write_atomic
from data_shards.errors import InputError
from smdt.training.lease import ATTEMPT

Status = Literal["running", "done", "preempted", "failed"]


class RunFolder:
    """Paths and files of one run below `root`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.environment = self.root / "environment.json"
        self.state = self.root / "state.json"
        self.metrics = self.root / "metrics.jsonl"
        self.quarantine = self.root / "quarantine.jsonl"
        self.evaluation = self.root / "evaluation.json"
        self.references = self.root / "references.json"
        self.report = self.root / "report.html"
        self.stop = self.root / "stop"
        self.lease = self.root / "lease"
        self.checkpoints = self.root / "checkpoints"
        self.neighbours = self.root / "neighbours"
        self.logs = self.root / "logs"
        self.targets = self.root / "targets"

    def create(self) -> None:
        """Make the folders that ranks write into.

        Raises:
            InputError: the folder cannot be made or written.
        """
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
            status: how the run stands.
            step: optimisation steps done; None keeps what the file says.
            reason: why it failed, in one sentence.
            retry: whether starting a failed run again may help.
        """
        if step is None:
            step = (self.read_state() or {"step": 0})["step"]
        content = {"status": status, "step": step, "reason": reason, "retry": retry}
        write_json(self.state, content | {"attempt": os.environ.get(ATTEMPT)})

    def read_state(self) -> dict[str, Any] | None:
        """Return what `state.json` says, None before the first start."""
        if not self.state.exists():
            return None
        state: dict[str, Any] = json.loads(self.state.read_text())
        return state

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the records of `metrics.jsonl`; a line that a kill cut short is left out."""
        if not self.metrics.exists():
            return
        with self.metrics.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind_metrics(self, step: int) -> None:
        """Drop the records after `step`: a resumed run writes them again."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        write_atomic(self.metrics, b"".join(json.dumps(r).encode() + b"\n" for r in kept))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as indented JSON, in one rename."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())

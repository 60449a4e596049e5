"""Terminal output of rank 0 during a run."""

from collections.abc import Mapping
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_shards.base.names import printable
from data_shards.base.terminal import Terminal, title_column


class Display:
    """Interface of the terminal output; this one prints nothing, for other ranks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def step(self, step: int, record: Mapping[str, float]) -> None:
        """Show that `step` steps are done and what the last one measured."""

    def say(self, text: str) -> None:
        """Show a line."""


class ProgressBar(Display):
    """One bar with loss, rate and time left.

    Args:
        total_steps: length of the run.
        title: what runs.
    """

    def __init__(self, total_steps: int, title: str) -> None:
        self._progress = Progress(
            title_column(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Terminal(stderr=True),
        )
        self._task = self._progress.add_task(printable(title), total=total_steps, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._progress.stop()

    def step(self, step: int, record: Mapping[str, float]) -> None:
        """Move the bar."""
        note = "  ".join(f"{value:.4g} {name}" for name, value in record.items())
        self._progress.update(self._task, completed=step, note=note)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text)

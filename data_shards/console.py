"""Terminal output of a shard job: a progress bar (stderr) and tables at the end (stdout)."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
)
from rich.table import Table
from rich.text import Text

from data_shards.base.errors import InputError
from data_shards.base.names import printable
from data_shards.base.terminal import Terminal, title_column
from data_shards.build.executor import AdvanceCallback
from data_shards.build.progress import BuildCallback, Work
from data_shards.format.manifest import Manifest
from data_shards.inspect.stats import SplitStats
from data_shards.inspect.verify import Verification

MEGABYTE = 1e6
LISTED_DAMAGES = 50


class _Rate(ProgressColumn):
    """Samples a second of this run: what was finished before it started took no time."""

    def render(self, task: Task) -> Text:
        return Text(f"{_rate(task):,.0f}/s")


class _TimeLeft(ProgressColumn):
    """Hours, minutes and seconds, at the rate of this run."""

    def render(self, task: Task) -> Text:
        rate = _rate(task)
        if rate == 0 or task.remaining is None:
            return Text("-:--:--")
        return Text(str(timedelta(seconds=round(task.remaining / rate))))


def _rate(task: Task) -> float:
    done = task.completed - task.fields["before"]
    return done / task.elapsed if task.elapsed else 0.0


class BuildProgressBar(BuildCallback):
    """A bar with rate and time left, on stderr, while it is open.

    Args:
        title: what is being done.
        clock: seconds; another one for tests.
    """

    def __init__(self, title: str, clock: Callable[[], float] = monotonic) -> None:
        self._title = printable(title)
        columns = (title_column(), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns, _Rate(), _TimeLeft(), console=Terminal(stderr=True), get_time=clock
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.stop()

    def begin(self, work: Work) -> None:
        """Show the bar, with what was finished before."""
        self.progress.add_task(
            self._title, total=work.rows, completed=work.rows_done, before=work.rows_done
        )

    def advance(self, rows: int) -> None:
        """Move the bar on."""
        self.progress.advance(self.progress.task_ids[0], rows)


@contextmanager
def progress_bar(title: str, samples: int) -> Iterator[AdvanceCallback]:
    """A bar of a job that starts from nothing; yields what moves it on."""
    with BuildProgressBar(title) as bar:
        bar.begin(Work(0, 0, samples, 0))
        yield bar.advance


def show_build(manifest: Manifest, out: str) -> None:
    """The table at the end of a build."""
    table = Table("split", "kind", title=f"{manifest.name} in {out}")
    for name in ("shards", "samples", "MB", "rejected"):
        table.add_column(name, justify="right")
    for name, split in manifest.splits.items():
        rejected = ", ".join(f"{n} {reason}" for reason, n in split.rejected.items())
        table.add_row(
            name,
            split.kind,
            str(len(split.shards)),
            f"{split.samples:,}",
            f"{split.bytes / MEGABYTE:,.1f}",
            rejected or "0",
        )
    Terminal().print(table)


def show_run(figures: dict[str, Any]) -> None:
    """The table of what one run of a job wrote: `RunTotals.figures`."""
    table = Table(title="This run")
    rejected = ", ".join(f"{n} {reason}" for reason, n in figures["rejected"].items())
    row = {
        "shards": f"{figures['shards']:,}",
        "samples": f"{figures['samples']:,}",
        "MB": f"{figures['bytes'] / MEGABYTE:,.1f}",
        "rejected": rejected or "0",
        "seconds": f"{figures['seconds']:,.1f}",
        "samples/s": f"{figures['samples_per_second']:,.1f}",
    }
    for name in row:
        table.add_column(name, justify="right")
    table.add_row(*row.values())
    Terminal().print(table)


def show_left(task: str, left: int, out: str) -> None:
    """Show what remains of a data set when a task of a job array is done."""
    what_to_do = (
        f"{left} shards of {out} are left to other tasks; when all are done,"
        if left
        else f"All shards of {out} are written: now"
    )
    Terminal().print(
        f"Task {task} is done. {what_to_do} run `smdt shards finalize {out}`.", soft_wrap=True
    )


def show_stats(splits: dict[str, SplitStats], root: str) -> None:
    """The table of `stats`: a column a split."""
    table = Table("", *splits, title=root)
    columns = [_describe(split) for split in splits.values()]
    for quantity in columns[0]:
        table.add_row(quantity, *(column[quantity] for column in columns))
    Terminal().print(table)


def _describe(split: SplitStats) -> dict[str, str | Text]:
    return {
        "kind": split.kind,
        "shards": f"{split.shards:,}",
        "samples": f"{split.samples:,}",
        "rejected": f"{split.rejected:,}",
        "MB": f"{split.bytes / MEGABYTE:,.1f}",
        "places": f"{split.places:,}",
        "with a position": f"{split.with_position:.0%}",
        "with a heading": f"{split.with_heading:.0%}",
        "with labels": f"{split.with_labels:.0%}",
        "duplicates": _duplicates(split),
        "pixels": Text("\n".join(f"{image} {size}" for image, size in split.sizes.items())),
    }


def _duplicates(split: SplitStats) -> Text:
    if split.duplicates is None:
        return Text("not counted")
    return Text("\n").join(
        Text(f"{view} {each.repeated:,} in the split, {each.shared:,} in others")
        for view, each in split.duplicates.items()
    )


def show_verification(result: Verification) -> None:
    """The table of damages, if there are any."""
    console = Terminal()
    if not result.damages:
        console.print(f"{result.shards} shards with {result.samples:,} samples are whole.")
        return
    table = Table(title=f"{len(result.damages)} damages")
    for name in ("file", "sample", "part", "reason", "detail"):
        table.add_column(name, overflow="fold")
    for damage in result.damages[:LISTED_DAMAGES]:
        table.add_row(*damage)
    console.print(table)
    if len(result.damages) > LISTED_DAMAGES:
        console.print(f"... and {len(result.damages) - LISTED_DAMAGES} more: all with --json FILE.")


def write_json(path: Path | None, value: object) -> None:
    """Write what a table shows, in JSON values, to the file of `--json`, if there is one.

    Raises:
        InputError: the file can't be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}.") from None

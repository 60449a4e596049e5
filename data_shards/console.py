"""What a shard job shows: a bar while it works (stderr), tables when it is done (stdout)."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from data_shards.executor import Advance
from data_shards.manifest import Manifest
from data_shards.stats import SplitStats
from data_shards.verify import Verification

MEGABYTE = 1e6
LISTED_DAMAGES = 50


class _Rate(ProgressColumn):
    """Samples a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


@contextmanager
def progress_bar(title: str, samples: int) -> Iterator[Advance]:
    """A bar with rate and time left; yields what moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=samples)
        yield lambda finished: progress.advance(bar, finished)


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
    Console().print(table)


def show_stats(splits: dict[str, SplitStats], root: str) -> None:
    """The table of `stats`: a column a split."""
    table = Table("", *splits, title=root)
    columns = [_describe(split) for split in splits.values()]
    for quantity in columns[0]:
        table.add_row(quantity, *(column[quantity] for column in columns))
    Console().print(table)


def _describe(split: SplitStats) -> dict[str, str]:
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
        "pixels": "\n".join(f"{image} {size}" for image, size in split.sizes.items()),
    }


def _duplicates(split: SplitStats) -> str:
    if split.duplicates is None:
        return "not counted"
    return "\n".join(
        f"{view} {each.repeated:,} in the split, {each.shared:,} in others"
        for view, each in split.duplicates.items()
    )


def show_verification(result: Verification) -> None:
    """The table of damages, if there are any."""
    console = Console()
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

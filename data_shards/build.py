"""Build a data set: plan, write the shards that are missing, finalize."""

import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from data_shards import layout
from data_shards.errors import ShardError, Stopped
from data_shards.executor import Advance, no_progress, run_tasks
from data_shards.finalize import finalize, write_rejected
from data_shards.index import read_summary
from data_shards.manifest import Manifest
from data_shards.plan import BuildOptions, BuildPlan, ShardTask
from data_shards.sources.source import Source
from data_shards.writer import SLOW_IMPORTS, write_shard

__all__ = ["BuildOptions", "build"]


def build(
    source: Source,
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    workers: int | None = None,
    max_rejected: int | None = None,
    progress: Advance | None = None,
) -> Manifest:
    """Build a data set, or go on with one that was interrupted.

    The files are byte-identical whatever the number of workers and whenever it was killed.

    Args:
        source: where the samples come from.
        out: folder of the data set; made if missing.
        options: what decides the bytes, besides the source.
        workers: processes; None is one a core.
        max_rejected: more rejected samples than this are an error; None is no limit.
        progress: called with the number of samples finished since the last call; first with those
            of shards that were there already.

    Raises:
        InputError: `out` belongs to another build or can't be written.
        ShardError: too many rejected samples, a killed worker, a full disk.
        Stopped: SIGINT or SIGTERM came; finished shards stay.
    """
    root = Path(out)
    plan = BuildPlan.of(source, options or BuildOptions())
    plan.claim(root)
    tasks = [task for split in plan.splits for task in plan.tasks(split)]
    with _stop_signals():
        try:
            _write_missing(
                source, plan, root, tasks, workers, max_rejected, progress or no_progress
            )
            return finalize(root)
        except KeyboardInterrupt:
            finished = sum(_finished(root, task) is not None for task in tasks)
            raise Stopped(
                f"Stopped with {finished} of {len(tasks)} shards finished in {root}: "
                "start the same command again to go on."
            ) from None


def _write_missing(
    source: Source,
    plan: BuildPlan,
    root: Path,
    tasks: list[ShardTask],
    workers: int | None,
    max_rejected: int | None,
    progress: Advance,
) -> None:
    rejected_by_task = {task: _finished(root, task) for task in tasks}
    missing = [task for task, rejected in rejected_by_task.items() if rejected is None]
    rejected = sum(rejected or 0 for rejected in rejected_by_task.values())
    progress(sum(len(task.rows) for task in tasks) - sum(len(task.rows) for task in missing))
    write = partial(write_shard, source, plan.options, root)
    results = run_tasks(write, missing, workers, progress, preload=SLOW_IMPORTS)
    with closing(results):
        _check_rejected(root, plan, rejected, max_rejected)
        for summary in results:
            rejected += len(summary.rejected)
            _check_rejected(root, plan, rejected, max_rejected)


def _finished(root: Path, task: ShardTask) -> int | None:
    """How many samples a finished shard rejected; None if it is still to be written."""
    part = layout.part_path(root, task.split, task.shard)
    if not part.exists():
        return None
    summary = read_summary(part)
    if summary.samples and not layout.tar_path(root, task.split, task.shard).exists():
        return None
    return len(summary.rejected)


def _check_rejected(root: Path, plan: BuildPlan, rejected: int, max_rejected: int | None) -> None:
    if max_rejected is None or rejected <= max_rejected:
        return
    listed = write_rejected(root, plan)
    raise ShardError(
        f"{rejected} samples were rejected, more than --max-rejected {max_rejected}: "
        f"see {listed}, mend the files or raise the limit, and start again."
    )


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM acts as Ctrl-C does while the block runs (signals belong to the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

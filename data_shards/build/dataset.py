"""Build a data set: plan, write the shards that are missing, finalize."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from types import FrameType

from data_shards.base.errors import InputError, ShardError, Stopped
from data_shards.base.store import Location, exists, location
from data_shards.build.executor import Executor, run_tasks
from data_shards.build.finalize import finalize, write_rejected
from data_shards.build.job_array import WHOLE, ArrayTask
from data_shards.build.progress import BuildCallback, Work
from data_shards.build.writer import SLOW_IMPORTS, prepare, write_shard
from data_shards.format import layout
from data_shards.format.aspect import RESIZE_LIMIT, RESIZE_TOLERANCE, stretch_of
from data_shards.format.images import encoder_name
from data_shards.format.index import read_summary
from data_shards.format.manifest import Manifest
from data_shards.format.plan import (
    SPLIT_NAME,
    BuildOptions,
    BuildPlan,
    PlannedSplit,
    ShardTask,
    missing_shards,
)
from data_shards.format.sample import RejectedSample
from data_shards.sources.source import Source

FIRST_ROWS = 10
"""Rows of a split that are tried before a build until one can be used."""

_log = logging.getLogger(__name__)


def build(
    source: Source,
    out: str | Location,
    options: BuildOptions | None = None,
    *,
    workers: int | None = None,
    max_rejected: int | None = None,
    executor: Executor = run_tasks,
    watchers: Sequence[BuildCallback] = (),
) -> Manifest:
    """Build a data set, or resume an interrupted build.

    The files are byte-identical whatever the number of workers, the executor, and whenever it was
    killed.

    Args:
        source: where the samples come from.
        out: folder or URL of the data set; a folder is made if missing.
        options: what decides the bytes, in addition to the source.
        workers: shards written at once; None is as many as the executor has cores.
        max_rejected: more rejected samples than this are an error; None: no limit.
        executor: who writes the shards.
        watchers: are told how it goes.

    Raises:
        InputError: `out` belongs to another build or can't be written.
        ShardError: too many rejected samples, a killed worker, a full disk.
        Stopped: SIGINT or SIGTERM came; finished shards stay.
    """
    build_share(
        source,
        out,
        options,
        workers=workers,
        max_rejected=max_rejected,
        executor=executor,
        watchers=watchers,
    )
    return finish(out)


def build_share(
    source: Source,
    out: str | Location,
    options: BuildOptions | None = None,
    share: ArrayTask = WHOLE,
    *,
    workers: int | None = None,
    max_rejected: int | None = None,
    executor: Executor = run_tasks,
    watchers: Sequence[BuildCallback] = (),
) -> int:
    """Write the shards of one task of a job array; `finalize` makes a data set of all.

    Tasks may start at the same moment, on any host that sees `out`, and a task that was killed
    starts again. Arguments and exceptions are those of `build`.

    Args:
        share: which task; every one of them gets the same source and options.

    Returns:
        How many shards of the data set are not finished yet, in this share or another.
    """
    root = location(out)
    plan = plan_build(source, options or BuildOptions())
    _check_ground_size(source, plan)
    plan.claim(root)
    with _stoppable(root, plan) as check_stop:
        guarded = (_StopCheck(check_stop), *watchers)
        _write_missing(source, plan, root, share, workers, max_rejected, executor, guarded)
        return sum(map(len, missing_shards(root, plan).values()))


def plan_build(source: Source, options: BuildOptions) -> BuildPlan:
    """Return the plan of a build (pure).

    Raises:
        InputError: a split has no rows, or a name that can't be part of a key.
    """
    for name, split in source.splits.items():
        if SPLIT_NAME.fullmatch(name) is None:
            raise InputError(
                f"The split name {name!r} may have only letters, digits and underscores."
            )
        if split.rows == 0:
            raise InputError(f"The split {name} of {source.name} has no rows.")
    resizes = options.ground_size is not None or options.aerial_size is not None
    encodes = resizes or any(split.crops for split in source.splits.values())
    return BuildPlan(
        name=source.name,
        source=source.options(),
        options=options,
        encoder=encoder_name(options.encoding) if encodes else None,
        splits={
            name: PlannedSplit(kind=split.kind, rows=split.rows)
            for name, split in source.splits.items()
        },
    )


def finish(out: str | Location) -> Manifest:
    """Finalize a build whose shards are all written; it stops as `build` does."""
    root = location(out)
    with _stoppable(root, BuildPlan.load(root)):
        return finalize(root)


def _write_missing(
    source: Source,
    plan: BuildPlan,
    root: Location,
    share: ArrayTask,
    workers: int | None,
    max_rejected: int | None,
    executor: Executor,
    watchers: Sequence[BuildCallback],
) -> None:
    rejected_by_task = {task: _finished(root, task) for task in _all_tasks(plan)}
    ours = share.share(_all_tasks(plan))
    missing = [task for task in ours if rejected_by_task[task] is None]
    rejected = sum(rejected or 0 for rejected in rejected_by_task.values())
    rows = sum(len(task.rows) for task in ours)
    rows_done = rows - sum(len(task.rows) for task in missing)
    for watcher in watchers:
        watcher.begin(Work(len(ours), len(ours) - len(missing), rows, rows_done))

    def advance(rows: int) -> None:
        for watcher in watchers:
            watcher.advance(rows)

    write = partial(write_shard, source, plan.options, root)
    with closing(executor(write, missing, workers, advance, preload=SLOW_IMPORTS)) as results:
        _check_rejected(root, plan, rejected, max_rejected)
        for summary in results:
            for watcher in watchers:
                watcher.finish(summary)
            rejected += len(summary.rejected)
            _check_rejected(root, plan, rejected, max_rejected)
    _check_arrived(root, plan, missing)


def _check_ground_size(source: Source, plan: BuildPlan) -> None:
    """Compare the size to store with the shape of each split's first panorama.

    Raises:
        InputError: it is another shape altogether.
    """
    size = plan.options.ground_size
    if size is None:
        return
    for split in plan.splits:
        before = _first_panorama(source, split)
        if before is None:
            continue
        name, height, width = before
        stretch = stretch_of(size, (height, width))
        said = (
            f"--ground-size {size[0]}x{size[1]} stretches the panoramas of split {split} by "
            f"{stretch:.1f} in one direction, the first is {name} with {height}x{width}"
        )
        if stretch > RESIZE_LIMIT:
            raise InputError(f"{said}: give a HEIGHTxWIDTH of their shape.")
        if stretch > RESIZE_TOLERANCE:
            _log.warning("%s.", said)


def _first_panorama(source: Source, split: str) -> tuple[str, int, int] | None:
    """Name, height and width, as it would be stored, of a split's first panorama, if any."""
    for row in range(min(FIRST_ROWS, source.splits[split].rows)):
        try:
            sample = source.sample(split, row)
            ground = prepare("", sample, BuildOptions()).images.get("ground")
        except RejectedSample:
            continue
        return None if ground is None else (sample.meta.source_id, ground.height, ground.width)
    return None


def _all_tasks(plan: BuildPlan) -> list[ShardTask]:
    return [task for split in plan.splits for task in plan.tasks(split)]


def _finished(root: Location, task: ShardTask) -> int | None:
    """Return how many samples a finished shard rejected; None if the shard is not written yet."""
    part = layout.part_path(root, task.split, task.shard)
    if not exists(part):
        return None
    summary = read_summary(part)
    if summary.samples and not exists(layout.tar_path(root, task.split, task.shard)):
        return None
    return len(summary.rejected)


def _check_rejected(
    root: Location, plan: BuildPlan, rejected: int, max_rejected: int | None
) -> None:
    if max_rejected is None or rejected <= max_rejected:
        return
    listed = write_rejected(root, plan)
    raise ShardError(
        f"{rejected} samples were rejected, more than --max-rejected {max_rejected}: "
        f"see {listed}, repair the files or raise the limit, and start again."
    )


def _check_arrived(root: Location, plan: BuildPlan, written: list[ShardTask]) -> None:
    """Check that what an executor's processes wrote is visible on this machine."""
    missing = missing_shards(root, plan)
    for task in written:
        if task.shard in missing.get(task.split, ()):
            raise ShardError(
                f"{layout.part_path(root, task.split, task.shard)} was written on another node "
                "and is not here: give an --out that is the same folder on every node."
            )


class _StopCheck(BuildCallback):
    """Ends a job on request from a callback: Python may drop a signal handler's exception."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def advance(self, rows: int) -> None:  # noqa: ARG002
        self._check()


@contextmanager
def _stoppable(root: Location, plan: BuildPlan) -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM end the block as `Stopped`; yields the check of `stop_signals`."""
    try:
        with stop_signals() as check_stop:
            yield check_stop
    except KeyboardInterrupt:
        tasks = _all_tasks(plan)
        finished = sum(_finished(root, task) is not None for task in tasks)
        raise Stopped(
            f"Stopped with {finished} of {len(tasks)} shards finished in {root}: "
            "start the same command again to resume."
        ) from None


@contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM acts as Ctrl-C does while the block runs (signals belong to the main thread).

    Yields what raises `KeyboardInterrupt` if one of them came: the first, raised inside a
    destructor, is printed and forgotten by Python.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

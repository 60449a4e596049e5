"""Make a data set of finished shards: merged indexes, the list of rejections, the manifest."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from functools import reduce
from operator import add

import numpy as np

from data_shards.base.atomic import remove_leftovers, write_atomic
from data_shards.base.errors import ShardError
from data_shards.base.store import Location, local_copy, location, sizes
from data_shards.format import layout
from data_shards.format.aspect import elevation_warning
from data_shards.format.duplicates import count_and_list
from data_shards.format.index import (
    VIEWS,
    Rejection,
    ShardSummary,
    merge_parts,
    read_digests,
    read_summary,
    read_table,
)
from data_shards.format.manifest import Manifest, ShardEntry, SplitEntry, save
from data_shards.format.pixels import PixelSums
from data_shards.format.plan import BuildPlan, check_complete

_log = logging.getLogger(__name__)


def finalize(root: str | Location) -> Manifest:
    """Merge the index parts of every split and write `manifest.json`; done twice, it is the same.

    Raises:
        InputError: `root` holds no build.
        ShardError: shards are missing or their index parts damaged, or a split has no samples.
    """
    root = location(root)
    plan = BuildPlan.load(root)
    check_complete(root, plan)
    summaries = {split: _summaries(root, plan, split) for split in plan.splits}
    write_rejected(root, plan)
    splits = {split: _split_entry(root, plan, split, summaries[split]) for split in plan.splits}
    manifest = Manifest(
        name=plan.name,
        seed=plan.options.seed,
        source=plan.source,
        options=plan.options,
        encoder=plan.encoder,
        made=plan.made,
        splits=_with_duplicates(root, splits),
    )
    remove_leftovers(root)
    save(root, manifest)
    return manifest


def write_rejected(root: Location, plan: BuildPlan) -> Location:
    """Write the rejections of all shards finished so far to `rejected.jsonl`; return its path."""
    rejections: list[Rejection] = []
    for split in plan.splits:
        there = sizes(root / split)
        for task in plan.tasks(split):
            part = layout.part_path(root, split, task.shard)
            if part.name in there:
                rejections += read_summary(part).rejected
    path = root / layout.REJECTED
    write_atomic(path, rejected_list(rejections))
    return path


def rejected_list(rejections: Iterable[Rejection]) -> bytes:
    """The content of `rejected.jsonl` (pure)."""
    return "".join(f"{rejection.model_dump_json()}\n" for rejection in rejections).encode()


def sha256(path: Location) -> str:
    """SHA-256 of a file, hexadecimal."""
    with local_copy(path) as copy, copy.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_digests(root: Location, split: str, entry: SplitEntry) -> dict[str, np.ndarray] | None:
    """The digests of a split by view; None if a shard is older than them.

    Raises:
        ShardError: an index part is missing or damaged.
    """
    parts = [read_digests(layout.part_path(root, split, shard.shard)) for shard in entry.shards]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return {view: np.concatenate([part[view] for part in known]) for view in VIEWS}


def _summaries(root: Location, plan: BuildPlan, split: str) -> dict[int, ShardSummary]:
    """The summary of every shard of a split by its number."""
    return {
        task.shard: read_summary(layout.part_path(root, split, task.shard))
        for task in plan.tasks(split)
    }


def _split_entry(
    root: Location, plan: BuildPlan, split: str, summaries: dict[int, ShardSummary]
) -> SplitEntry:
    filled = {shard: summary for shard, summary in summaries.items() if summary.samples}
    if not filled:
        raise ShardError(
            f"Not one sample of {split} could be used: see {root / layout.REJECTED} for why."
        )
    parts = {shard: layout.part_path(root, split, shard) for shard in filled}
    table = layout.table_path(root, split)
    samples = merge_parts(parts.values(), table)
    warning = elevation_warning(read_table(table))
    if warning:
        _log.warning("split %s: %s", split, warning)
    rejected = Counter(r.reason for s in summaries.values() for r in s.rejected)
    return SplitEntry(
        kind=plan.splits[split].kind,
        rows=plan.splits[split].rows,
        samples=samples,
        bytes=sum(summary.tar_bytes for summary in filled.values()),
        rejected=dict(sorted(rejected.items())),
        views={view: sums.statistics() for view, sums in _view_sums(list(filled.values())).items()},
        table_sha256=sha256(table),
        shards=[
            ShardEntry(
                shard=shard,
                samples=summary.samples,
                bytes=summary.tar_bytes,
                sha256=summary.tar_sha256,
                index_sha256=sha256(parts[shard]),
            )
            for shard, summary in filled.items()
        ],
    )


def _with_duplicates(root: Location, splits: dict[str, SplitEntry]) -> dict[str, SplitEntry]:
    """The splits with their counts; writes `duplicates.jsonl`."""
    digests = {split: split_digests(root, split, entry) for split, entry in splits.items()}
    known = {split: each for split, each in digests.items() if each is not None}
    if len(known) < len(splits):
        return splits
    counts, listed = count_and_list(root, known)
    write_atomic(root / layout.DUPLICATES, listed)
    return {
        split: entry.model_copy(update={"duplicates": counts[split]})
        for split, entry in splits.items()
    }


def _view_sums(summaries: list[ShardSummary]) -> dict[str, PixelSums]:
    views = sorted({view for summary in summaries for view in summary.pixels})
    return {
        view: reduce(add, (s.pixels[view] for s in summaries if view in s.pixels)) for view in views
    }

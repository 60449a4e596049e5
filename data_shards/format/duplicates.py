"""Photographs that a data set has more than once, found by the digests of their pixels."""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from data_shards.base.store import Location
from data_shards.format import layout
from data_shards.format.index import VIEWS, read_table

Digests = Mapping[str, Mapping[str, np.ndarray]]
"""By split and view, uint64 [N, 2] in the order of the split's merged index."""


class DuplicateCount(BaseModel):
    """Number of samples of a split whose photograph other samples have too, pixel by pixel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repeated: int
    """Samples whose photograph an earlier sample of the split has."""
    shared: int
    """Samples whose photograph a sample of another split has: across train and test, a leak."""


class Groups(NamedTuple):
    """Photographs that occur more than once, one entry an occurrence; groups in the order of their
    first occurrence, occurrences in the order of splits and rows.

    Args:
        group: int64 [M], counts up from 0.
        split: int64 [M], number of the split.
        row: int64 [M], in the split's merged index.
    """

    group: np.ndarray
    split: np.ndarray
    row: np.ndarray


def find_groups(digests: list[np.ndarray]) -> Groups:
    """Group equal digests: one uint64 [N, 2] a split; a digest of 0 means no photograph."""
    lengths = [len(each) for each in digests]
    words = np.concatenate(digests)
    place = np.flatnonzero(words.any(axis=1))  # over all splits
    place = place[np.lexsort((place, words[place, 1], words[place, 0]))]
    starts = np.ones(len(place), dtype=bool)
    starts[1:] = (words[place[1:]] != words[place[:-1]]).any(axis=1)
    first = place[np.maximum.accumulate(np.where(starts, np.arange(len(place)), 0))]
    group_size = np.bincount(first, minlength=len(words))
    several = group_size[first] > 1
    place, first = place[several], first[several]
    order = np.lexsort((place, first))
    place, first = place[order], first[order]
    begins = np.cumsum([0, *lengths])
    split = np.searchsorted(begins, place, side="right") - 1
    group = np.unique(first, return_inverse=True)[1]
    return Groups(group.astype(np.int64), split, place - begins[split])


def count(groups: Groups, splits: int) -> list[DuplicateCount]:
    """Count duplicates by split."""
    pairs = np.unique(np.stack([groups.group, groups.split], axis=1), axis=0)
    splits_of_group = np.bincount(pairs[:, 0])
    shared = splits_of_group[groups.group] > 1
    return [
        DuplicateCount(
            repeated=int((groups.split == split).sum() - (pairs[:, 1] == split).sum()),
            shared=int((shared & (groups.split == split)).sum()),
        )
        for split in range(splits)
    ]


def count_and_list(
    root: Location, digests: Digests
) -> tuple[dict[str, dict[str, DuplicateCount]], bytes]:
    """Counts by split and view, and the bytes of `duplicates.jsonl`.

    Args:
        root: of the data set; its merged indexes exist.
        digests: of all its splits.

    Raises:
        ShardError: a merged index is missing or damaged.
    """
    counts: dict[str, dict[str, DuplicateCount]] = {split: {} for split in digests}
    lines: list[str] = []
    names = {
        split: read_table(layout.table_path(root, split)).select(["key", "source_id"])
        for split in digests
    }
    for view in VIEWS:
        groups = find_groups([digests[split][view] for split in digests])
        for split, counted in zip(digests, count(groups, len(digests)), strict=True):
            if digests[split][view].any():
                counts[split][view] = counted
        lines += _lines(view, groups, names)
    return counts, "".join(lines).encode()


def _lines(view: str, groups: Groups, names: Mapping[str, pa.Table]) -> Iterator[str]:
    """One JSON object a group."""
    samples = np.empty(len(groups.row), dtype=object)
    for number, (split, table) in enumerate(names.items()):
        here = groups.split == number
        rows = table.take(groups.row[here]).to_pylist()
        samples[here] = [{"split": split, **row} for row in rows]
    for group in np.split(samples, np.flatnonzero(np.diff(groups.group)) + 1):
        if len(group):
            yield json.dumps({"view": view, "samples": list(group)}) + "\n"

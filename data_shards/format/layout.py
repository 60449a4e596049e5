"""Paths of the files of a data set below its root, a folder or a URL."""

import re

from data_shards.base.store import Location

PLAN = "build.json"
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
DUPLICATES = "duplicates.jsonl"


def shard_name(split: str, shard: int) -> str:
    """A shard's name without a suffix, as `train-000007`."""
    return f"{split}-{shard:06d}"


def sample_key(split: str, row: int) -> str:
    """The key of a source row in its shard, as `train-000000042`."""
    return f"{split}-{row:09d}"


def tar_path(root: Location, split: str, shard: int) -> Location:
    """The samples of a shard."""
    return root / split / f"{shard_name(split, shard)}.tar"


def idx_path(root: Location, split: str, shard: int) -> Location:
    """DALI's index of a tar."""
    return root / split / f"{shard_name(split, shard)}.idx"


def part_path(root: Location, split: str, shard: int) -> Location:
    """Our index of a tar; the shard is finished when this file is there."""
    return root / split / f"{shard_name(split, shard)}.parquet"


def table_path(root: Location, split: str) -> Location:
    """The merged index of a split, an Arrow IPC file to memory-map."""
    return root / split / f"{split}.arrow"


def is_of_shard(split: str, file: str) -> bool:
    """Whether a file's name is one that a shard of the split has."""
    return re.fullmatch(rf"{re.escape(split)}-\d{{6,}}\.(tar|idx|parquet)", file) is not None

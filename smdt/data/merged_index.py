"""The merged index of a split, memory-mapped and checked against the manifest."""

import hashlib
import mmap
import os
import time
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from upath import UPath

from data_shards.base.errors import DataError
from data_shards.base.store import size
from data_shards.format import layout, manifest
from data_shards.format.index import open_table
from smdt.data.shard_cache import ShardCache


def local_table(root: Path, name: str, described: manifest.Manifest) -> pa.Table:
    """The merged index of a split in a folder, memory-mapped.

    Raises:
        DataError: it is missing, or not the one that the manifest describes.
    """
    path = layout.table_path(root, name)
    assert isinstance(path, Path)
    remedy = f"run `smdt shards finalize {root}`"
    samples = {entry.table_sha256: entry.samples for entry in described.splits.values()}
    expected = described.splits[name]
    try:
        with path.open("rb") as file:
            mapped, digest = _mapped(file)
    except FileNotFoundError:
        raise DataError(f"The index file {path} is missing: {remedy}.") from None
    if digest == expected.table_sha256:
        return open_table(pa.py_buffer(mapped))
    if digest in samples:
        raise DataError(
            f"The index of split {name!r} in {root} is another split's and has {samples[digest]} "
            f"samples, its manifest says {expected.samples}: {remedy}."
        )
    raise DataError(
        f"The index file {path} is damaged (its SHA-256 is not the manifest's): {remedy}."
    )


def cached_table(root: UPath, name: str, sha256: str, cache: ShardCache) -> pa.Table:
    """The merged index of a split in a store, memory-mapped from the cache.

    Raises:
        DataError: it is missing, or not the one that the manifest describes.
    """
    stored = layout.table_path(root, name)
    assert isinstance(stored, UPath)
    for _ in range(2):
        try:
            file = cache.open(stored, sha256, size(stored), time.sleep)
        except FileNotFoundError:
            break
        with file:
            mapped, digest = _mapped(file)
        if digest == sha256:
            return open_table(pa.py_buffer(mapped))
        cache.drop(sha256)
    raise DataError(
        f"{stored} is missing or does not have the manifest's checksum: run "
        f"`smdt shards finalize {root}`."
    )


def _mapped(file: BinaryIO) -> tuple[bytes | mmap.mmap, str]:
    """A file, memory-mapped, and its SHA-256, hexadecimal."""
    empty = os.fstat(file.fileno()).st_size == 0
    mapped = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return mapped, hashlib.sha256(mapped).hexdigest()

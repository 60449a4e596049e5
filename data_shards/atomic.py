"""Files that are either whole or not there, whatever kills the process."""

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from data_shards.store import Location, uploaded_file

BUFFER_BYTES = 1 << 20


def atomic_file(path: Location) -> AbstractContextManager[BinaryIO]:
    """A file to write that appears as `path` when the block ends without an exception.

    In a store it is put there whole, which is atomic in an object store.
    """
    return _renamed_file(path) if isinstance(path, Path) else uploaded_file(path)


@contextmanager
def _renamed_file(path: Path) -> Iterator[BinaryIO]:
    """A local file, written under another name until it is whole.

    It is written beside `path` under a name that nobody else uses (process ids repeat on the hosts
    that share a file system), flushed, synced and renamed; the rename is synced too.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb", buffering=BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Location, data: bytes) -> None:
    """Write a small file in one go."""
    with atomic_file(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(root: Location) -> None:
    """Delete what killed processes left half written in a data set's folder; a store has none."""
    if not isinstance(root, Path):
        return
    for pattern in ("*.tmp", "*/*.tmp"):
        for path in root.glob(pattern):
            path.unlink(missing_ok=True)

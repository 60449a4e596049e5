"""The tars of a split by number: where they are, or in the cache of a store."""

import os
from collections import OrderedDict
from pathlib import Path
from threading import Event, Lock
from typing import Protocol

from upath import UPath

from data_shards.base.errors import DataError, StoreError
from data_shards.base.store import exists, retry
from data_shards.format import layout
from data_shards.format.manifest import ShardEntry
from smdt.data.shard_cache import ShardCache
from smdt.data.split import Split

RETRY_DELAYS_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Waits between attempts on local storage that does not answer, before the run ends."""

OPEN_FILES = 128
"""Local tars that are kept open."""


class TarReader(Protocol):
    """Reads pieces of tars, from any number of threads at once."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes of a tar from `offset`, fewer only where it ends.

        Raises:
            FileNotFoundError: the tar is gone, while the data set is there.
            DataError: the storage stays away.
        """
        ...

    def renew(self, shard: int) -> bool:
        """Download the cached tar again, once; False if tars are not cached."""
        ...


def open_tars(split: Split, stopping: Event) -> TarReader:
    """The tars of a split; when `stopping` is set, waiting for storage ends at once."""
    if split.cache is None or isinstance(split.root, Path):
        return LocalTarReader(split, stopping)
    return CachedTarReader(split, split.root, split.cache, stopping)


class CachedTarReader:
    """Tars of a store, read from their copies in the cache."""

    def __init__(self, split: Split, root: UPath, cache: ShardCache, stopping: Event) -> None:
        self._split = split
        self._manifest = root / layout.MANIFEST
        self._cache = cache
        self._pause = stopping.wait
        self._renewed: set[int] = set()
        self._lock = Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """As `TarReader.read`."""
        stored, entry = self._split.tar_of(shard), self._split.shards[shard]
        assert isinstance(stored, UPath)
        try:
            return self._read(stored, entry, offset, size)
        except StoreError as error:
            raise DataError(str(error)) from None

    def _read(self, stored: UPath, entry: ShardEntry, offset: int, size: int) -> bytes:
        while True:
            try:
                with self._cache.open(stored, entry.sha256, entry.bytes, self._pause) as file:
                    return read_at(file.fileno(), offset, size)
            except FileNotFoundError:
                if exists(self._manifest):
                    raise
                # Not the tar is gone but everything: that is storage which is away.
                retry(self._require_manifest, self._manifest, self._pause)

    def renew(self, shard: int) -> bool:
        """As `TarReader.renew`."""
        with self._lock:
            if shard not in self._renewed:
                self._renewed.add(shard)
                self._cache.drop(self._split.shards[shard].sha256)
        return True

    def _require_manifest(self) -> None:
        if not exists(self._manifest):
            raise ConnectionError


class LocalTarReader:
    """Tars in a local folder, read where they are."""

    def __init__(self, split: Split, stopping: Event) -> None:
        self._split = split
        self._stopping = stopping
        self._files = _OpenFiles(OPEN_FILES)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """As `TarReader.read`; a file that is missing in its folder is just gone."""
        path = Path(str(self._split.tar_of(shard)))
        for delay_seconds in (*RETRY_DELAYS_SECONDS, None):
            try:
                return self._files.read(path, offset, size)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and path.parent.is_dir():
                    raise
                self._files.forget(path)
                if delay_seconds is None or self._stopping.wait(delay_seconds):
                    raise DataError(
                        f"{path} can't be read ({error.strerror}), after "
                        f"{len(RETRY_DELAYS_SECONDS) + 1} attempts: is the storage reachable?"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def renew(self, shard: int) -> bool:
        """Return False: local tars are not cached."""
        del shard
        return False


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset`, fewer only where it ends."""
    pieces, missing = [], size
    while missing:
        piece = os.pread(descriptor, missing, offset + size - missing)
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _OpenFile:
    """A file descriptor that closes when the last thread that reads it lets go."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _OpenFiles:
    """The files that were read last, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._files: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """As `read_at`."""
        file = self._open(path)  # held: else another thread could close it meanwhile
        return read_at(file.descriptor, offset, size)

    def forget(self, path: Path) -> None:
        """Reopen the file next time."""
        with self._lock:
            self._files.pop(path, None)

    def _open(self, path: Path) -> _OpenFile:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path]
        file = _OpenFile(path)  # outside the lock: opening may take long
        with self._lock:
            self._files[path] = file
            if len(self._files) > self._capacity:
                self._files.popitem(last=False)
        return file

"""Whole files of a store on the local disk: a bounded folder that the ranks of a node share.

A file is called by its SHA-256, so a data set that changed never meets the files of the one before,
and two addresses of one data set share theirs. What was used longest ago makes room. A file that is
being read stays readable: its descriptor is open.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, PositiveFloat
from upath import UPath

from data_shards.base.atomic import is_at
from data_shards.base.errors import DataError, DataInputError, ShardError
from data_shards.base.store import Pause, download, require_local

GIGABYTE = 10**9
LOCK_POLL_SECONDS = 0.05
ROOM_POLL_SECONDS = 0.2

COPY = re.compile(r"[0-9a-f]{64}")
"""Names of the copies: other files in the folder are the user's."""
LOCK = "lock"
PARTIAL = ".partial"
"""Suffix of a file that is being downloaded; the downloading process holds a lock on it."""
RESERVED = ".reserved"
"""Suffix of an empty file of the size of the download next to it."""


class CacheConfig(BaseModel):
    """Cache folder and size for shards of a store; local shards are read in place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str | None = None
    """On a local disk, shared by the ranks of a node; None: `~/.cache/smdt/shards`."""
    gigabytes: PositiveFloat = 50.0
    """The most that it may hold, in 10^9 bytes."""

    @property
    def limit_bytes(self) -> int:
        """The bound in bytes."""
        return int(self.gigabytes * GIGABYTE)


class ShardCache:
    """Local copies of files in a store, for any number of threads and processes at once.

    Args:
        config: where, and how much.

    Attributes:
        limit_bytes: the most that the folder may hold.

    Raises:
        InputError: the folder can't be made, or is a URL.
    """

    def __init__(self, config: CacheConfig) -> None:
        given = config.folder or "~/.cache/smdt/shards"
        self._folder = Path(given).expanduser()
        self.limit_bytes = config.limit_bytes
        require_local(self._folder, "data.cache.folder")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataInputError(
                f"The cache folder {self._folder} can't be made ({error.strerror}): set "
                "data.cache.folder to one on a local disk."
            ) from None

    def open(self, stored: UPath, sha256: str, size_bytes: int, pause: Pause) -> BinaryIO:
        """Open the local copy of a stored file, downloaded first if it isn't there.

        Args:
            stored: the file.
            sha256: that it was written with; its name here.
            size_bytes: that it is expected to have: the room that is made for it.
            pause: waits; true ends the waiting.

        Raises:
            FileNotFoundError: the store says that there is no such file.
            DataError: the store stays away, or the cache has no room for the file.
        """
        copy = self._folder / sha256
        while True:
            with suppress(FileNotFoundError):
                file = copy.open("rb", buffering=0)
                os.utime(file.fileno())  # used now: the last to make room
                return file
            downloaded = self._download(stored, copy, size_bytes, pause)
            if downloaded is not None:
                return downloaded

    def drop(self, sha256: str) -> None:
        """Forget a file: the next `open` downloads it."""
        (self._folder / sha256).unlink(missing_ok=True)

    def _download(
        self, stored: UPath, copy: Path, size_bytes: int, pause: Pause
    ) -> BinaryIO | None:
        """Download a file and open it; None where another process has just done so."""
        partial = copy.with_name(copy.name + PARTIAL)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _owned(partial, pause):
                if copy.exists():
                    return None
                with self._room(copy, size_bytes, pause):
                    download(stored, partial, pause)
                    # Opened before it can be made room of: each download serves at least one read.
                    file = partial.open("rb", buffering=0)
                    partial.replace(copy)
                    return file
        except FileNotFoundError:
            raise
        except ShardError as error:
            raise DataError(str(error)) from None
        except OSError as error:
            raise DataError(
                f"The cache folder {self._folder} can't be written ({error.strerror}): set "
                "data.cache.folder to a larger disk, or data.cache.gigabytes to what it has."
            ) from None

    @contextmanager
    def _room(self, copy: Path, size_bytes: int, pause: Pause) -> Iterator[None]:
        """Keep `size_bytes` free for a file while the block runs, at the cost of the oldest."""
        if size_bytes > self.limit_bytes:
            raise DataInputError(
                f"The cache {self._folder} may hold {self.limit_bytes / GIGABYTE:g} GB, and one "
                f"file has {size_bytes / GIGABYTE:g}: raise data.cache.gigabytes."
            )
        reserved = copy.with_name(copy.name + RESERVED)
        while not self._reserve(reserved, size_bytes):
            if pause(ROOM_POLL_SECONDS):  # other downloads fill the cache; they end
                raise DataError(f"Stopped waiting for room in {self._folder}.")
        try:
            yield
        finally:
            reserved.unlink(missing_ok=True)

    def _reserve(self, reserved: Path, size_bytes: int) -> bool:
        """Make room and reserve it, or say that downloads in progress leave none."""
        with (self._folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used, copies = 0, []
            for entry in list(os.scandir(self._folder)):
                if COPY.fullmatch(entry.name.removesuffix(RESERVED)) is None:
                    continue
                with suppress(FileNotFoundError):
                    state = entry.stat()
                    if entry.name.endswith(RESERVED):
                        used += 0 if self._removed_if_orphaned(Path(entry)) else state.st_size
                    else:
                        used += state.st_size
                        copies.append((state.st_mtime_ns, state.st_size, entry.path))
            for _, size, path in sorted(copies):
                if used + size_bytes <= self.limit_bytes:
                    break
                Path(path).unlink(missing_ok=True)
                used -= size
            if used + size_bytes > self.limit_bytes:
                return False
            with reserved.open("wb") as file:
                file.truncate(size_bytes)
            return True

    def _removed_if_orphaned(self, reserved: Path) -> bool:
        """Remove a reservation, and the download next to it, if its process is dead."""
        partial = reserved.with_suffix(PARTIAL)
        try:
            file = partial.open("rb")
        except FileNotFoundError:
            reserved.unlink(missing_ok=True)
            return True
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            partial.unlink(missing_ok=True)
            reserved.unlink(missing_ok=True)
            return True


@contextmanager
def _owned(partial: Path, pause: Pause) -> Iterator[None]:
    """Be the only one, of all threads and processes, to write a file that is removed at the end."""
    while True:
        with partial.open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if pause(LOCK_POLL_SECONDS):
                        raise DataError(f"Stopped waiting for {partial}.") from None
            if not is_at(file, partial):
                continue  # the holder of the lock has finished or removed this file
            try:
                yield
            finally:
                if is_at(file, partial):  # not renamed: it failed, or was not needed
                    partial.unlink()
            return

"""Files that are either whole or not there, whatever kills the process."""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from data_shards.base.store import Location, names, uploaded_file

BUFFER_BYTES = 1 << 20

LEFTOVER = re.compile(
    r"\.(?:tar|idx|parquet|arrow|jsonl?|safetensors|smdt)\.(?P<writer>[0-9a-f]+)\.tmp"
)
"""Suffix of our unfinished files and folders."""

OTHER_HOST_SECONDS = 900.0
"""An unfinished file of another host that changed later than this is being written: some cluster
file systems keep locks within one host."""

NO_LOCK_SECONDS = 86_400.0
"""The same where the file system has no locks."""


def atomic_file(path: Location) -> AbstractContextManager[BinaryIO]:
    """A file to write that appears as `path` when the block ends without an exception.

    In a store it is put there whole, which is atomic in an object store.
    """
    return _renamed_file(path) if isinstance(path, Path) else uploaded_file(path)


@contextmanager
def _renamed_file(path: Path) -> Iterator[BinaryIO]:
    """A local file, written under a temporary name until it is complete.

    It is written next to `path` under a name that no other process uses, locked, flushed, synced
    and renamed; the rename is synced too.
    """
    while True:
        temporary = path.with_name(f"{path.name}.{_writer()}.tmp")
        try:
            with temporary.open("xb", buffering=BUFFER_BYTES) as file:
                _lock(file.fileno())
                if not is_at(file, temporary):
                    continue  # removed as a leftover before it was locked
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        break
    sync_folder(path.parent)


@contextmanager
def unpublished_folder(path: Path) -> Iterator[Path]:
    """An empty folder next to `path` to fill and rename; it is removed when the block ends.

    Folders that killed processes left for the same `path` are removed before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.smdt."
    for name in names(path.parent):
        if name.startswith(prefix) and is_leftover(name):
            _remove_if_orphaned(path.with_name(name))
    folder = path.with_name(f"{prefix}{_writer()}.tmp")
    folder.mkdir()
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor)
            yield folder
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_leftovers(root: Location) -> None:
    """Delete the unfinished files that killed processes left in one of our folders, recursively.

    What another process is writing stays, and so do files of other names. A store has no leftovers.

    Raises:
        InputError: a folder can't be read.
    """
    if not isinstance(root, Path):
        return
    folders = [root / name for name in names(root)]
    for folder in (root, *(each for each in folders if each.is_dir() and not each.is_symlink())):
        for name in names(folder):
            if is_leftover(name):
                _remove_if_orphaned(folder / name)


def is_leftover(name: str) -> bool:
    """Whether a name is that of one of our unfinished files."""
    found = LEFTOVER.search(name)
    return found is not None and found.end() == len(name)


def _remove_if_orphaned(path: Path) -> None:
    """Remove an unfinished file or folder that no process writes."""
    with suppress(FileNotFoundError, PermissionError):  # it is whole now, or another user's
        state = path.lstat()
        folder = stat.S_ISDIR(state.st_mode)
        if not folder and not stat.S_ISREG(state.st_mode):
            return
        writer = path.name.split(".")[-2]
        idle_seconds = time.time() - state.st_mtime
        elsewhere = len(writer) == len(_writer()) and not writer.startswith(_host())
        if elsewhere and idle_seconds < OTHER_HOST_SECONDS:
            return
        # NFS gives an exclusive lock only to who may write.
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            if _is_free(descriptor, idle_seconds):
                shutil.rmtree(path) if folder else path.unlink()
        finally:
            os.close(descriptor)


def _is_free(descriptor: int, idle_seconds: float) -> bool:
    """Whether no process holds a file; without file locks: whether it no longer changes."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return idle_seconds > NO_LOCK_SECONDS
    return True


def _lock(descriptor: int) -> None:
    """Hold a file until it is closed, where the file system has locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _writer() -> str:
    """16 hexadecimal digits that no other writer has; the first eight are the host's."""
    return _host() + secrets.token_hex(4)

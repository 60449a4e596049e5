"""Bytes of samples by offset, checked before any decoder sees them."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from typing import Literal, TypeVar

import google_crc32c

from smdt.data.split import DataError, Split
from smdt.telemetry.metrics import TrainingMetrics

RETRY_DELAYS_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Waits between attempts on storage that does not answer, before the run ends."""

OPEN_FILES = 128
"""Tars that a reader keeps open."""

_Result = TypeVar("_Result")


class DamagedPart(Exception):  # noqa: N818  (an outcome that is counted, not a failure)
    """The bytes of a part are not those that were written.

    Attributes:
        part: such as "ground".
        reason: the label of the metric.
        detail: one sentence that names the file.
    """

    def __init__(
        self, part: str, reason: Literal["checksum", "truncated", "missing"], detail: str
    ) -> None:
        super().__init__(part, reason, detail)
        self.part = part
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Reader:
    """Reads the parts of a split's samples, from any number of threads at once.

    Args:
        split: whose index says where the bytes are.
        metrics: counts bytes and seconds.
        stopping: when set, waiting for storage ends at once.
    """

    def __init__(self, split: Split, metrics: TrainingMetrics, stopping: Event) -> None:
        self._split = split
        self._metrics = metrics
        self._stopping = stopping
        self._files = _OpenFiles(OPEN_FILES)

    def read(self, sample_id: int, part: str) -> bytes:
        """The bytes of a part that the index lists for the sample.

        Raises:
            DamagedPart: the file is gone or too short, or the bytes fail their CRC32C.
            DataError: the storage cannot be read, after some attempts.
        """
        path = self._split.tar(sample_id)
        offset, size, crc32c = (
            int(self._split.column(f"{part}_{column}")[sample_id])
            for column in ("offset", "size", "crc32c")
        )
        start = perf_counter()
        try:
            data = self._persistently(lambda: self._files.read(path, offset, size), path)
        except FileNotFoundError:
            raise DamagedPart(part, "missing", f"{path} does not exist.") from None
        self._metrics.read_seconds.observe(perf_counter() - start)
        self._metrics.read_bytes.inc(len(data))
        if len(data) < size:
            detail = f"{path} ends at byte {offset + len(data)}, {part} to {offset + size}."
            raise DamagedPart(part, "truncated", detail)
        if google_crc32c.value(data) != crc32c:
            detail = f"Bytes {offset} to {offset + size} of {path} fail their checksum."
            raise DamagedPart(part, "checksum", detail)
        return data

    def _persistently(self, read: Callable[[], _Result], path: Path) -> _Result:
        """Repeat `read` while storage fails; a file that is missing in its folder is just gone."""
        for delay_seconds in (*RETRY_DELAYS_SECONDS, None):
            try:
                return read()
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
        """`size` bytes from `offset`, fewer only where the file ends."""
        file = self._open(path)
        pieces, missing = [], size
        while missing:
            piece = os.pread(file.descriptor, missing, offset + size - missing)
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def forget(self, path: Path) -> None:
        """Open the file anew next time."""
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

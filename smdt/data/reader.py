"""Bytes of samples by offset, checked before any decoder sees them."""

from threading import Event
from time import perf_counter
from typing import Literal

import google_crc32c

from smdt.data.split import Split
from smdt.data.tars import open_tars
from smdt.telemetry.metrics import TrainingMetrics


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
        self._tars = open_tars(split, stopping)

    def read(self, sample_id: int, part: str) -> bytes:
        """The bytes of a part that the index lists for the sample.

        Raises:
            DamagedPart: the file is gone or too short, or the bytes fail their CRC32C.
            DataError: the storage cannot be read, after some attempts.
        """
        start = perf_counter()
        try:
            return self._read(sample_id, part)
        except FileNotFoundError:
            detail = f"{self._split.tar(sample_id)} does not exist."
            raise DamagedPart(part, "missing", detail) from None
        finally:
            self._metrics.read_seconds.observe(perf_counter() - start)

    def _read(self, sample_id: int, part: str) -> bytes:
        shard = int(self._split.column("shard")[sample_id])
        offset, size, crc32c = (
            int(self._split.column(f"{part}_{column}")[sample_id])
            for column in ("offset", "size", "crc32c")
        )
        data = self._tars.read(shard, offset, size)
        if not _is_whole(data, size, crc32c) and self._tars.renew(shard):
            data = self._tars.read(shard, offset, size)
        self._metrics.read_bytes.inc(len(data))
        if _is_whole(data, size, crc32c):
            return data
        tar = self._split.tar_of(shard)
        if len(data) < size:
            detail = f"{tar} ends at byte {offset + len(data)}, {part} to {offset + size}."
            raise DamagedPart(part, "truncated", detail)
        detail = f"Bytes {offset} to {offset + size} of {tar} fail their checksum."
        raise DamagedPart(part, "checksum", detail)


def _is_whole(data: bytes, size: int, crc32c: int) -> bool:
    return len(data) == size and google_crc32c.value(data) == crc32c

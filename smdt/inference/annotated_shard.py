"""Rewriting one shard: each sample's bytes are kept, and one part is made by a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from threading import Event
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.base.errors import DataError
from data_shards.base.store import Location
from data_shards.build.executor import AdvanceCallback
from data_shards.build.rewrite import count_pixels, restored, row_of
from data_shards.build.writer import PreparedSample, write_samples
from data_shards.format import layout
from data_shards.format.images import PreparedImage
from data_shards.format.index import ABSENT, Rejection, read_digests, read_summary
from data_shards.format.pixels import PixelSums
from data_shards.format.plan import ShardTask
from data_shards.format.sample import IMAGES, JSON, PARTS
from smdt.data.batch import Batch, BatchDecoder, EncodedSample
from smdt.data.order import DataState
from smdt.data.prefetch import prefetch_jobs
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics

READ_THREADS = 4
DECODE_THREADS = 2
READ_AHEAD = 4
"""Batches that are read before they are decoded."""


class Annotator(ABC):
    """Makes one part of a sample from other parts."""

    part: ClassVar[str]
    """The image that it makes, by its name in the index."""
    views: ClassVar[tuple[str, ...]]
    """What it makes it from."""

    @property
    @abstractmethod
    def model(self) -> dict[str, JSON]:
        """Return the provenance of the part, for the manifest: equal provenance, equal part."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Sequence[PreparedImage]:
        """Make the part of each sample of a batch that holds `views`."""


Read: TypeAlias = EncodedSample | Rejection
"""All parts of a sample that stay, or why it could not be read."""


class MissingSampleLimit:
    """Counts what this rank could not read.

    Args:
        limit: how many samples may be left out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def add(self, sample: Rejection, root: Location) -> None:
        """Count a sample of the data set in `root`.

        Raises:
            DataError: it is one too many.
        """
        self._count += 1
        if self._count > self._limit:
            raise DataError(
                f"More samples can't be read than --max-missing {self._limit}: {sample.detail} "
                f"`smdt shards verify {root}` names them all."
            )


class ShardAnnotator:
    """Makes the shards of one split, one after the other.

    Args:
        split: whose samples to take.
        annotator: what makes the part.
        batch: samples that it sees at once.
        device: where it sees them.
        missing: counts what can't be read.
    """

    def __init__(
        self,
        split: Split,
        annotator: Annotator,
        batch: int,
        device: torch.device,
        missing: MissingSampleLimit,
    ) -> None:
        self._split = split
        self._annotator = annotator
        self._batch = batch
        self._missing = missing
        self._has_views = has_views(split, annotator.views)
        metrics = TrainingMetrics("", annotator.part, 0)
        self._reader = Reader(split, metrics, Event())
        self._maker = BatchDecoder(split, annotator.views, batch, device, DECODE_THREADS)

    def write(self, task: ShardTask, root: Location, advance: AdvanceCallback) -> None:
        """Make a shard of the data set in `root`.

        Raises:
            DataError: more samples than allowed are damaged; the shard is then not made.
        """
        before = layout.part_path(self._split.root, task.split, task.shard)
        summary, digests = read_summary(before), read_digests(before)
        ids = np.flatnonzero(self._split.column("shard") == task.shard)
        rejected = list(summary.rejected)
        kept: list[int] = []

        def samples() -> Iterator[PreparedSample]:
            for sample, made in self._annotated(ids):
                if isinstance(sample, Rejection):
                    rejected.append(sample)
                    self._missing.add(sample, self._split.root)
                else:
                    kept.append(sample.sample_id)
                    row = sample.sample_id - int(ids[0])
                    yield self._prepared(sample, made, digests_of(digests, row))
                advance(1)

        def pixels() -> dict[str, PixelSums]:
            whole = len(rejected) == len(summary.rejected)
            sums = summary.pixels if whole else count_pixels(self._photographs(kept))
            return {view: each for view, each in sums.items() if view != self._annotator.part}

        write_samples(samples(), root, task.split, task.shard, rejected, pixels)

    def _annotated(self, ids: NDArray[np.int64]) -> Iterator[tuple[Read, PreparedImage | None]]:
        """The samples in their order, each with its new part if it has the views."""
        chunks = (ids[start : start + self._batch] for start in range(0, len(ids), self._batch))
        batches = prefetch_jobs(
            chunks,
            lambda chunk: [partial(self._read, int(sample_id)) for sample_id in chunk],
            self._decode,
            threads=READ_THREADS,
            finishers=self._maker.concurrency,
            ahead=READ_AHEAD,
            stopping=Event(),
        )
        with closing(batches):
            for samples, batch in batches:
                made = iter(() if batch is None else self._annotator(batch))
                for sample in samples:
                    yield sample, next(made) if self._is_seen(sample) else None

    def _read(self, sample_id: int) -> Read:
        made = self._annotator.part if self._has_views[sample_id] else None
        stays = [part for part in PARTS if part != made and self._has(part, sample_id)]
        try:
            return EncodedSample.read(self._reader, sample_id, stays)
        except DamagedPart as damage:
            return Rejection(
                split=self._split.name,
                row=row_of(self._split.key(sample_id)),
                reason=damage.reason,
                detail=damage.detail,
            )

    def _decode(
        self, chunk: NDArray[np.int64], samples: list[Read]
    ) -> tuple[list[Read], Batch | None]:
        """Return the samples that were read, and the batch for the annotator."""
        seen = [s for s in samples if isinstance(s, EncodedSample) and self._is_seen(s)]
        state = DataState(self._split.manifest_hash, 0, 0, int(chunk[-1]) + 1)
        return samples, self._maker.make(seen, 0, state) if seen else None

    def _is_seen(self, sample: Read) -> bool:
        return isinstance(sample, EncodedSample) and bool(self._has_views[sample.sample_id])

    def _prepared(
        self, sample: EncodedSample, made: PreparedImage | None, digests: Mapping[str, bytes] | None
    ) -> PreparedSample:
        sizes = {
            name: (
                int(self._split.column(f"{name}_height")[sample.sample_id]),
                int(self._split.column(f"{name}_width")[sample.sample_id]),
            )
            for name in IMAGES
        }
        prepared = restored(self._split.key(sample.sample_id), sample.images, sizes, digests)
        if made is None:
            return prepared
        return replace(prepared, images={**prepared.images, self._annotator.part: made})

    def _photographs(self, ids: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        """The photographs that stay, for statistics without those that are missing."""
        for sample_id in ids:
            for name in IMAGES:
                if name not in ("seg", self._annotator.part) and self._has(name, sample_id):
                    yield name, self._reader.read(sample_id, name)

    def _has(self, part: str, sample_id: int) -> bool:
        return bool(self._split.column(f"{part}_offset")[sample_id] != ABSENT)


def digests_of(
    digests: Mapping[str, NDArray[np.uint64]] | None, row: int
) -> dict[str, bytes] | None:
    """Those of one sample, from those of its shard."""
    if digests is None:
        return None
    return {view: words[row].tobytes() for view, words in digests.items()}


def has_views(split: Split, views: Sequence[str]) -> NDArray[np.bool_]:
    """Return which samples have all of `views`, [N]."""
    present = [split.column(f"{view}_offset") != ABSENT for view in views]
    both: NDArray[np.bool_] = np.logical_and.reduce(present)
    return both

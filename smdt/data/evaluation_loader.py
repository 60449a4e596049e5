"""Batches of an evaluation: each sample of a split once, in the order of the shards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from threading import Event

import torch

from data_shards.base.errors import DataError
from smdt.data.batch import Batch, BatchDecoder, EncodedSample
from smdt.data.distinct_places import Ids
from smdt.data.order import DataState, evaluation_slice
from smdt.data.prefetch import prefetch_jobs
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics

READ_THREADS = 4
DECODE_THREADS = 2
READ_AHEAD = 4
"""Batches that are read before they are decoded."""

Missing = dict[str, str]
"""key, source_id, part, reason and detail of a sample that an evaluation left out."""


class EvaluationLoader:
    """This rank's samples of a split, each once, in the order of the shards.

    Damaged samples are left out, and listed in `missing`.

    Args:
        split: of any kind that has the views.
        views: what a batch holds.
        batch: samples of a batch, of this rank; a batch may have fewer.
        rank: of this process, below `world_size`.
        world_size: ranks that share the split.
        device: where the images end up; a GPU also decodes them.
        max_missing: samples that may be left out on this rank.
        sample_ids: what of the split, int64 [n]; None is all of it, and its tars are checked.

    Attributes:
        missing: what the last pass left out, in the order of the shards.
        longest: batches of the rank that has the most.

    Raises:
        DataInputError: the split lacks a view.
        DataError: more samples are in missing or truncated tars than `max_missing`; while
            iterating: more are damaged, or storage stays away.
    """

    def __init__(
        self,
        split: Split,
        *,
        views: Sequence[str],
        batch: int,
        rank: int,
        world_size: int,
        device: torch.device,
        max_missing: int = 0,
        sample_ids: Ids | None = None,
    ) -> None:
        split.require_views(views)
        if sample_ids is None:
            split.require_tars(max_missing, "max_missing")
        split.require_cache(shuffled=False)
        self.missing: list[Missing] = []
        chosen: range | Ids = range(len(split)) if sample_ids is None else sample_ids
        slices = [evaluation_slice(len(chosen), each, world_size) for each in range(world_size)]
        self.longest = max(-(-len(part) // batch) for part in slices)
        self._split = split
        self._views = tuple(views)
        self._batch = batch
        self._own = chosen[slices[rank].start : slices[rank].stop]
        self._device = device
        self._max_missing = max_missing
        self._metrics = TrainingMetrics("", "evaluation", rank)  # they are not exported

    def __iter__(self) -> Iterator[Batch]:
        self.missing.clear()
        stopping = Event()
        reader = Reader(self._split, self._metrics, stopping)
        maker = BatchDecoder(self._split, self._views, self._batch, self._device, DECODE_THREADS)

        def reads(own: range) -> list[Callable[[], EncodedSample | Missing]]:
            return [partial(self._read, reader, int(self._own[row])) for row in own]

        def make(
            own: range, samples: list[EncodedSample | Missing]
        ) -> tuple[Batch | None, list[Missing]]:
            whole = [sample for sample in samples if isinstance(sample, EncodedSample)]
            missing = [sample for sample in samples if not isinstance(sample, EncodedSample)]
            state = DataState(self._split.manifest_hash, 0, 0, own.stop)
            index = own.start // self._batch
            return maker.make(whole, index, state) if whole else None, missing

        rows = range(len(self._own))
        batches = prefetch_jobs(
            (rows[i : i + self._batch] for i in range(0, len(rows), self._batch)),
            reads,
            make,
            threads=READ_THREADS,
            finishers=maker.concurrency,
            ahead=READ_AHEAD,
            stopping=stopping,
        )
        with closing(batches):
            for batch, missing in batches:
                self._leave_out(missing)
                if batch is not None:
                    yield batch

    def _read(self, reader: Reader, sample_id: int) -> EncodedSample | Missing:
        try:
            return EncodedSample.read(reader, sample_id, self._views)
        except DamagedPart as damage:
            return {
                "key": self._split.key(sample_id),
                "source_id": self._split.source_id(sample_id),
                "part": damage.part,
                "reason": damage.reason,
                "detail": damage.detail,
            }

    def _leave_out(self, missing: list[Missing]) -> None:
        self.missing += missing
        if len(self.missing) > self._max_missing:
            keys = ", ".join(sample["key"] for sample in self.missing)
            raise DataError(
                f"More samples of split {self._split.name!r} can't be read than "
                f"max_missing={self._max_missing}: {keys}; `smdt shards verify "
                f"{self._split.root}` says why."
            )

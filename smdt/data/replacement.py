"""Reading for training, where a damaged sample never stops a step."""

from collections.abc import Sequence
from dataclasses import replace

from data_shards.base.errors import DataError
from smdt.data.batch import EncodedSample
from smdt.data.order import GlobalBatch, stand_in
from smdt.data.quarantine import QuarantineLine
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import Split


class StandInReader:
    """Reads the samples of global batches, and stand-ins for those that are damaged.

    Args:
        reader: that raises on damage.
        split: that it reads.
        views: to be read of each sample.
        rank: of this process.
    """

    def __init__(self, reader: Reader, split: Split, views: Sequence[str], rank: int) -> None:
        self._reader = reader
        self._split = split
        self._views = tuple(views)
        self._rank = rank

    def read(self, batch: GlobalBatch, slot: int) -> EncodedSample:
        """Read the sample in a slot of a global batch, or the stand-in for it.

        Raises:
            DataError: storage stays away, or no stand-in is to be found.
        """
        sample_id = int(batch.sample_ids[slot])
        replaced: list[QuarantineLine] = []
        while True:
            try:
                sample = EncodedSample.read(self._reader, sample_id, self._views)
                return replace(sample, replaced=replaced)
            except DamagedPart as damage:
                try:
                    chosen = stand_in(batch, slot, len(replaced), self._split.places)
                except ValueError as error:
                    raise DataError(f"{damage} {error}") from None
                replaced.append(self._line(batch, slot, sample_id, chosen, damage))
                sample_id = chosen

    def _line(
        self, batch: GlobalBatch, slot: int, sample_id: int, chosen: int, damage: DamagedPart
    ) -> QuarantineLine:
        return QuarantineLine(
            epoch=batch.epoch,
            batch=batch.index,
            position=slot,
            key=self._split.key(sample_id),
            source_id=self._split.source_id(sample_id),
            shard=int(self._split.column("shard")[sample_id]),
            part=damage.part,
            reason=damage.reason,
            detail=damage.detail,
            stand_in=self._split.key(chosen),
            rank=self._rank,
        )

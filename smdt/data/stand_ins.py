"""Reading for training, where a damaged sample never stops a step."""

from collections.abc import Sequence

from smdt.data.batch import EncodedSample
from smdt.data.order import GlobalBatch, stand_in
from smdt.data.quarantine import Quarantine, QuarantineLine
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import DataError, Split


class StandInReader:
    """Reads the samples of global batches, and stand-ins for those that are damaged.

    Args:
        reader: that raises on damage.
        split: that it reads.
        views: to be read of each sample.
        quarantine: where damage is listed.
        rank: of this process.
    """

    def __init__(
        self, reader: Reader, split: Split, views: Sequence[str], quarantine: Quarantine, rank: int
    ) -> None:
        self._reader = reader
        self._split = split
        self._views = tuple(views)
        self._quarantine = quarantine
        self._rank = rank

    def read(self, batch: GlobalBatch, slot: int) -> EncodedSample:
        """Read the sample in a slot of a global batch, or the stand-in for it.

        Raises:
            DataError: storage stays away, the quarantine is full, or no stand-in is to be found.
        """
        sample_id = int(batch.sample_ids[slot])
        attempt = 0
        while True:
            try:
                return EncodedSample.read(self._reader, sample_id, self._views)
            except DamagedPart as damage:
                sample_id = self._replace(batch, slot, attempt, sample_id, damage)
                attempt += 1

    def _replace(
        self, batch: GlobalBatch, slot: int, attempt: int, sample_id: int, damage: DamagedPart
    ) -> int:
        try:
            chosen = stand_in(batch, slot, attempt, self._split.places)
        except ValueError as error:
            raise DataError(f"{damage} {error}") from None
        self._quarantine.add(
            QuarantineLine(
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
        )
        return chosen

"""Replacement of damaged samples in training: a sample of another place, by a pure function."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_shards.base.errors import DataError
from smdt.data.batch import EncodedSample
from smdt.data.distinct_places import Ids, first_of_each
from smdt.data.order import GlobalBatch
from smdt.data.quarantine import QuarantineLine
from smdt.data.randomness import seed_for
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import Split

MOST_DRAWS = 1 << 16
"""Random draws for the replacements of a batch, 0.2 s; then free places are tried in a shuffled
order."""


class ReplacingReader:
    """Reads the samples of global batches, and replaces damaged ones.

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
        """Read the sample in a slot of a global batch, or its replacement.

        Raises:
            DataError: storage stays away, or no replacement is found.
        """
        sample_id = int(batch.sample_ids[slot])
        replaced: list[QuarantineLine] = []
        while True:
            try:
                sample = EncodedSample.read(self._reader, sample_id, self._views)
                return replace(sample, replaced=replaced)
            except DamagedPart as damage:
                try:
                    chosen = replacement_sample(batch, slot, len(replaced), self._split.places)
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


def replacement_sample(batch: GlobalBatch, slot: int, attempt: int, places: Ids) -> int:
    """The sample that replaces the one in a slot of a batch, which could not be read.

    The free places, none of which the batch holds, are in one random sequence with a sample of
    each. Slot s takes its numbers s, s + G, s + 2G, ..., so that no two replacements share a place,
    although ranks do not exchange what is damaged. A slot that has none left, on a split with
    few free places, takes those of other slots, then other samples of free places and of its own:
    two damaged slots of a batch may then share a place, and in the loss neither is a negative of
    the other.

    Args:
        batch: as the order made it.
        slot: of the damaged sample.
        attempt: from 0; goes up when the replacement is damaged too.
        places: int64 [N], the place of every sample id.

    Raises:
        ValueError: every sample of a free place and of the slot's own has been tried.
    """
    number = attempt * len(batch.sample_ids) + slot
    drawn = _drawn(batch, number + 1, places)
    if len(drawn) > number:
        return drawn[number]
    candidates = _candidates(batch, slot, drawn, places)
    if attempt >= len(candidates):
        raise ValueError("The split has no place left for a replacement.")
    return int(candidates[attempt])


def _drawn(batch: GlobalBatch, most: int, places: Ids) -> list[int]:
    """The first samples of the sequence of free places; fewer where the draws or places end."""
    met = set(places[batch.sample_ids].tolist())
    distinct = np.count_nonzero(np.bincount(places))
    samples: list[int] = []
    for draw in range(MOST_DRAWS):
        if len(samples) == most or len(met) == distinct:
            break
        words = (batch.state.seed, batch.epoch, batch.index, draw)
        sample = seed_for("stand-in", *words) % len(places)
        place = int(places[sample])
        if place not in met:
            met.add(place)
            samples.append(sample)
    return samples


def _candidates(batch: GlobalBatch, slot: int, drawn: list[int], places: Ids) -> Ids:
    """Return the candidates for a slot in order, if random draws alone are not enough: int64 [C].

    Args:
        batch: as the order made it.
        slot: of the damaged sample.
        drawn: the sequence of free places as far as it is drawn.
        places: [N].
    """
    own, held = batch.sample_ids[slot], places[batch.sample_ids]
    seed = seed_for("stand-ins", batch.state.seed, batch.epoch, batch.index)
    noise = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)).random_raw(len(places))
    others = np.argsort(noise, kind="stable")
    others = others[~np.isin(others, [*drawn, *batch.sample_ids])]
    free = others[~np.isin(places[others], held)]
    sequence = np.array(drawn, dtype=np.int64)
    undrawn = free[~np.isin(places[free], places[sequence])]
    sequence = np.concatenate([sequence, undrawn[first_of_each(places[undrawn])]])
    of_slot = sequence[slot :: len(batch.sample_ids)]
    of_others = np.roll(sequence, -(slot % max(len(sequence), 1)))
    of_others = of_others[~np.isin(of_others, of_slot)]
    again = free[~np.isin(free, sequence)]
    at_own_place = others[places[others] == places[own]]
    return np.concatenate([of_slot, of_others, again, at_own_place])

"""Which sample, when, on which rank: pure functions of (seed, epoch), and nothing else.

Shapes: N samples of a split, T global batches of an epoch, G samples of a global batch.
A *sample id* is a row of the split; a *place* is a number that samples of one location share.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from smdt.data.randomness import seed_for

Ids = NDArray[np.int64]

DRAWS_PER_SAMPLE = 30
"""Random draws, per sample of a split, after which practically each has been drawn."""


class OrderConfig(BaseModel):
    """The order of an epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["shuffle", "sequential"] = "shuffle"
    """`shuffle`: another permutation each epoch. `sequential`: as the shards hold the samples."""

    window: PositiveInt | None = None
    """For storage that wants sequential reads: shuffle runs of this many neighbouring samples, and
    the samples inside each run. None shuffles the whole epoch."""


@dataclass(frozen=True)
class DataState:
    """Where a run stands in its data: all that a checkpoint must save to go on exactly."""

    manifest_hash: str
    """SHA-256 of the manifest that the order was made for."""
    seed: int
    epoch: int
    """From 0."""
    consumed: int
    """Samples of this epoch that global batches have used, over all ranks."""
    table_hash: str = ""
    """Of the neighbour table that the order was made from; empty where the policy has none."""

    def to_json(self) -> dict[str, str | int]:
        """The state as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "DataState":
        """The state that `to_json` wrote."""
        return cls(
            manifest_hash=str(values["manifest_hash"]),
            seed=int(str(values["seed"])),
            epoch=int(str(values["epoch"])),
            consumed=int(str(values["consumed"])),
            table_hash=str(values["table_hash"]),
        )


@dataclass(frozen=True)
class GlobalBatch:
    """What all ranks together read for one step."""

    sample_ids: Ids
    """int64 [G], of distinct places."""
    epoch: int
    index: int
    """Number of the batch in the epoch."""
    state: DataState
    """After this batch: what a checkpoint saves."""


def stream_order(
    config: OrderConfig, state: DataState, epochs: int, places: Ids, global_batch: int
) -> Iterator[GlobalBatch]:
    """The global batches after `state`, until `epochs` epochs are done.

    The same for every number of ranks and wherever a run stopped in between.
    """
    done = state.consumed // global_batch
    for epoch in range(state.epoch, epochs):
        order = epoch_order(config, state.seed, epoch, len(places))
        batches = global_batches(order, places, global_batch)
        for index in range(done, len(batches)):
            after = replace(state, epoch=epoch, consumed=(index + 1) * global_batch)
            yield GlobalBatch(batches[index], epoch, index, after)
        done = 0


def epoch_order(config: OrderConfig, seed: int, epoch: int, count: int) -> Ids:
    """The `count` sample ids of an epoch in their order, int64 [N].

    Sorts the raw words of a Philox counter keyed by (seed, epoch): numpy keeps that stream fixed
    across versions, which it does not promise of `permutation`.
    """
    if config.policy == "sequential":
        return np.arange(count)
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    noise = words.random_raw(count)  # uint64 [N]
    if config.window is None:
        return np.argsort(noise, kind="stable")
    run = np.arange(count) // config.window  # [N]
    run_noise = words.random_raw(count // config.window + 1)
    return np.lexsort((noise, run_noise[run]))


def global_batches(order: Ids, places: Ids, global_batch: int) -> Ids:
    """Cut an epoch's order into global batches that hold no place twice, int64 [T, G].

    A sample whose place its batch already holds is postponed to the next batch that can take it.
    What fills no whole batch is dropped: `len(order) - result.size` samples.

    Args:
        order: a permutation of the sample ids 0..N-1.
        places: int64 [N], the place of every sample id.
        global_batch: G.
    """
    full = len(order) // global_batch
    rows = order[: full * global_batch].reshape(full, global_batch)  # [T, G]
    clashes = np.flatnonzero(_holds_place_twice(places[rows]))
    if len(clashes) == 0:
        return rows
    pieces, done = [], 0
    for clash in clashes.tolist():
        if clash < done:
            continue
        refilled, caught_up = _refill(order[clash * global_batch :], places, global_batch)
        pieces += [rows[done:clash], refilled]
        done = clash + len(refilled)
        if not caught_up:
            break
    else:
        pieces.append(rows[done:])
    return _complete(np.concatenate(pieces), order, places, full)


def batches_per_epoch(places: Ids, global_batch: int) -> int:
    """How many global batches every epoch has: T batches hold at most T samples of each place."""
    samples_of_place = np.unique(places, return_counts=True)[1]
    batches = len(places) // global_batch
    while (usable := int(np.minimum(samples_of_place, batches).sum())) < batches * global_batch:
        batches = usable // global_batch
    return batches


def rank_slice(batch: Ids, rank: int, world_size: int) -> Ids:
    """The share of a rank in a global batch: contiguous and equal, int64 [G / world_size].

    Raises:
        ValueError: the ranks do not divide the global batch.
    """
    share, rest = divmod(len(batch), world_size)
    if rest:
        raise ValueError(f"A global batch of {len(batch)} does not divide by {world_size} ranks.")
    return batch[rank * share : (rank + 1) * share]


def evaluation_slice(count: int, rank: int, world_size: int) -> range:
    """The sample ids that a rank evaluates: over all ranks each of `count` exactly once."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def stand_in(batch: GlobalBatch, slot: int, attempt: int, places: Ids) -> int:
    """The sample that replaces the one in a slot of a batch, which could not be read.

    The stand-ins of a batch come from one random sequence of samples, of places that are neither
    in the batch nor earlier in the sequence. Slot s takes its numbers s, s + G, s + 2G, ... So no
    two stand-ins share a place, although ranks do not know of each other's damage.

    Args:
        batch: as the order made it.
        slot: of the damaged sample.
        attempt: from 0; goes up when the stand-in is damaged too.
        places: int64 [N], the place of every sample id.

    Raises:
        ValueError: the split has too few places for another attempt.
    """
    number = attempt * len(batch.sample_ids) + slot
    met = set(places[batch.sample_ids].tolist())
    for draw in range(DRAWS_PER_SAMPLE * len(places)):
        words = (batch.state.seed, batch.epoch, batch.index, draw)
        sample = seed_for("stand-in", *words) % len(places)
        place = int(places[sample])
        if place in met:
            continue
        if number == 0:
            return sample
        met.add(place)
        number -= 1
    raise ValueError("The split has no place left for a stand-in.")


def _holds_place_twice(places: Ids) -> NDArray[np.bool_]:
    """For each row of [T, G] places, whether one of them repeats: bool [T]."""
    ordered = np.sort(places, axis=1)
    repeats: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return repeats


def _refill(order: Ids, places: Ids, global_batch: int) -> tuple[Ids, bool]:
    """Batches from the start of `order` until no sample is left postponed, int64 [t, G].

    Each sample is looked at once and a batch takes at most one postponed sample of each place, so
    the time is linear. False: `order` ended with samples still postponed; else the batches use up
    exactly their own length of it.
    """
    samples = map(int, order)
    postponed: dict[int, deque[int]] = {}  # by place, the place that waits longest first
    batches: list[list[int]] = []
    while not batches or postponed:
        batch, taken = [], set[int]()
        for place in list(islice(postponed, global_batch)):
            batch.append(postponed[place].popleft())
            taken.add(place)
            if not postponed[place]:
                del postponed[place]
        while len(batch) < global_batch:
            sample = next(samples, None)
            if sample is None:
                return np.array(batches, dtype=np.int64).reshape(-1, global_batch), False
            place = int(places[sample])
            if place in taken:
                postponed.setdefault(place, deque()).append(sample)
            else:
                batch.append(sample)
                taken.add(place)
        batches.append(batch)
    return np.array(batches, dtype=np.int64), True


def _complete(batches: Ids, order: Ids, places: Ids, full: int) -> Ids:
    """Make the batches up to `full` that lack only later samples to exchange with.

    Postponing finds no partner at the end of an epoch, and one clash there would drop a whole
    batch. A postponed sample may go into an earlier batch instead, for one that fits the last.
    """
    while len(batches) < full:
        unused = np.ones(len(order), dtype=bool)
        unused[batches.ravel()] = False
        left = order[unused[order]]
        first = np.sort(np.unique(places[left], return_index=True)[1])
        batch = left[first].tolist()  # one sample of each place that is left
        hopeless = set[int]()
        for sample in np.delete(left, first).tolist():
            if len(batch) == batches.shape[1]:
                break
            place = int(places[sample])
            if place not in hopeless and not _exchange(batches, batch, sample, places):
                hopeless.add(place)
        if len(batch) < batches.shape[1]:
            break
        batches = np.concatenate([batches, [batch]])
    return batches


def _exchange(batches: Ids, batch: list[int], sample: int, places: Ids) -> bool:
    """Put `sample` into one of `batches`, and a sample from there into `batch`, if any fits."""
    without_place = ~(places[batches] == places[sample]).any(axis=1)  # [T]
    for row in np.flatnonzero(without_place)[::-1]:
        fitting = np.flatnonzero(~np.isin(places[batches[row]], places[batch]))
        if len(fitting):
            batch.append(int(batches[row, fitting[0]]))
            batches[row, fitting[0]] = sample
            return True
    return False

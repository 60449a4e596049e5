"""Sample order by epoch and rank: pure functions of (seed, epoch).

Shapes: N samples of a split, T global batches of an epoch, G samples of a global batch,
K neighbours of a sample.
A *sample id* is a row of the split; a *place* is a number that samples of one location share.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from smdt.data.distinct_places import Ids, batches_per_epoch, global_batches
from smdt.data.prefetch import prefetch_one

Neighbours = NDArray[np.int32]
"""[N, K]: sample ids of other places, nearest first; -1 where there are fewer."""

Cut = tuple[int, int]
"""A size of global batches, and how many of it an epoch had in a row."""


class HardConfig(BaseModel):
    """Batches of hard negatives (after Sample4Geo, Deuser et al. 2023)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    neighbours: PositiveInt = 64
    """Samples of other places that the neighbour table holds of each sample, nearest first."""
    group: int = Field(16, ge=2)
    """Group size: consecutive samples in the order, one and its neighbours."""
    random_epochs: NonNegativeInt = 0
    """Epochs of plain shuffle before there is any table."""
    map_epochs: NonNegativeInt | None = None
    """Epochs after those with neighbours on the map. None: as many as `refresh`, or all."""
    refresh: PositiveInt | None = None
    """Epochs between tables that are made from the model's embeddings. None: no such tables."""

    @model_validator(mode="after")
    def _map_leads_somewhere(self) -> Self:
        if self.map_epochs is not None and self.refresh is None:
            raise ValueError(
                "map_epochs ends where tables by embedding begin: set refresh, or remove it"
            )
        return self


class OrderConfig(BaseModel):
    """The order of an epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["shuffle", "sequential", "hard"] = "shuffle"
    """`shuffle`: another permutation each epoch. `sequential`: the order of the shards. `hard`: a
    shuffle with neighbours next to each other."""
    window: PositiveInt | None = None
    """`shuffle`, for storage with slow random reads: shuffle runs of this many consecutive samples
    of the shards, and the samples inside each run. None shuffles the whole epoch."""
    hard: HardConfig = HardConfig()
    """`hard`: which neighbours, how many."""

    @model_validator(mode="after")
    def _window_shuffles(self) -> Self:
        if self.window is not None and self.policy != "shuffle":
            raise ValueError(f"window belongs to policy shuffle, not to {self.policy}")
        return self


@dataclass(frozen=True)
class DataState:
    """Position of a run in its data: all that decides the batches to come.

    Attributes:
        manifest_hash: SHA-256 of the data set's manifest.
        seed: of the run.
        epoch: of the last batch, from 0.
        consumed: samples of that epoch's batches so far.
        table_hash: SHA-256 of the neighbour table that orders the epoch; empty without one.
        cuts: sizes of the epoch's global batches so far, each with how many of it came.
        left: whole batches that the epoch still has, None where it is not known.
        order: configuration that ordered the epoch, None where it is not known.
    """

    manifest_hash: str
    seed: int
    epoch: int
    consumed: int
    table_hash: str = ""
    cuts: tuple[Cut, ...] = ()
    left: int | None = None
    order: OrderConfig | None = None

    @property
    def batches(self) -> int:
        """Global batches of the epoch so far."""
        return sum(count for _, count in self.cuts)

    @property
    def epochs_done(self) -> int | None:
        """Whole epochs so far, None in the middle of one or where that is not known."""
        return self.epoch + 1 if self.left == 0 else None

    def to_json(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        order = None if self.order is None else self.order.model_dump(mode="json")
        return {**asdict(self), "order": order}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DataState":
        """The state that `to_json` wrote; `cuts`, `left` and `order` may be missing."""
        order = values.get("order")
        return cls(
            manifest_hash=str(values["manifest_hash"]),
            seed=int(values["seed"]),
            epoch=int(values["epoch"]),
            consumed=int(values["consumed"]),
            table_hash=str(values["table_hash"]),
            cuts=tuple((int(size), int(count)) for size, count in values.get("cuts", ())),
            left=values.get("left"),
            order=None if order is None else OrderConfig.model_validate(order),
        )

    def completed(self, global_batch: int, order: OrderConfig) -> "DataState":
        """The state with what it does not say: `global_batch` and `order` made its batches.

        Raises:
            ValueError: such batches do not add up to the consumed samples.
        """
        cuts = self.cuts
        if self.consumed and not cuts:
            count, rest = divmod(self.consumed, global_batch)
            if rest:
                raise ValueError(f"{self.consumed} is not a multiple of {global_batch}")
            cuts = ((global_batch, count),)
        return replace(self, cuts=cuts, order=self.order or order)


@dataclass(frozen=True)
class GlobalBatch:
    """Samples that all ranks read for one step."""

    sample_ids: Ids
    """int64 [G], of distinct places."""
    epoch: int
    index: int
    """Number of the batch in the epoch."""
    state: DataState
    """After this batch: what a checkpoint saves."""


def stream_order(
    config: OrderConfig,
    state: DataState,
    epochs: int,
    places: Ids,
    global_batch: int,
    neighbours: Neighbours | None = None,
) -> Generator[GlobalBatch, None, None]:
    """The global batches after `state`, until `epochs` epochs are done.

    The same for every number of ranks and wherever a run stopped in between. An epoch that began
    with another size of batches continues with the samples that these have not taken, and one that
    began in another order keeps it to its end.

    Args:
        config: the policy.
        state: where to resume; its table is `neighbours`.
        epochs: to be done in all.
        places: int64 [N], the place of every sample id.
        global_batch: G.
        neighbours: int32 [N, K], needed by policy `hard`.
    """

    state = state.completed(global_batch, config)

    def order_of(epoch: int) -> tuple[OrderConfig, tuple[Cut, ...]]:
        """Return order and earlier cuts of an epoch, which keeps its order once started."""
        begun = epoch == state.epoch and state.consumed > 0
        return (state.order or config, state.cuts) if begun else (config, ())

    def batches_of(epoch: int) -> Ids:
        own, cuts = order_of(epoch)
        order = epoch_order(own, state.seed, epoch, len(places), neighbours)
        return _rest(order, cuts, places, global_batch)

    coming = range(state.epoch + (state.left == 0), epochs)
    with closing(prefetch_one(batches_of, coming)) as cut:
        for epoch, batches in zip(coming, cut, strict=True):
            own, cuts = order_of(epoch)
            after = replace(state, epoch=epoch, cuts=cuts, order=own)
            for number, samples in enumerate(batches, start=1):
                after = replace(
                    after,
                    cuts=_one_more(after.cuts, global_batch),
                    left=len(batches) - number,
                )
                after = replace(after, consumed=sum(size * count for size, count in after.cuts))
                yield GlobalBatch(samples, epoch, after.batches - 1, after)


def batches_left(
    state: DataState,
    places: Ids,
    global_batch: int,
    neighbours: Callable[[], Neighbours | None] = lambda: None,
) -> int:
    """Return how many batches of a size remain in the epoch of a state.

    An epoch whose last batch came is over, whatever the size.

    Args:
        state: with its `cuts` and `order`.
        places: int64 [N], the place of every sample id.
        global_batch: size of the batches to come.
        neighbours: returns the state's table, int32 [N, K]; called where the size has changed.
    """
    if state.left == 0:
        return 0
    whole = batches_per_epoch(places, global_batch)
    if not state.cuts:
        return whole
    if len(state.cuts) == 1:
        ((size, count),) = state.cuts
        if size == global_batch:
            return max(0, whole - count)
        if count >= batches_per_epoch(places, size):
            return 0
    assert state.order is not None, "it began an epoch"
    order = epoch_order(state.order, state.seed, state.epoch, len(places), neighbours())
    return len(_rest(order, state.cuts, places, global_batch))


def _rest(order: Ids, cuts: Sequence[Cut], places: Ids, global_batch: int) -> Ids:
    """The batches of an order that are still to come, int64 [T, G].

    Batches of other sizes have taken their samples; the rest of the order is cut again.
    """
    for number, (size, count) in enumerate(cuts, start=1):
        batches = _cut(order, places, size)
        if number == len(cuts) and size == global_batch:
            return batches[count:]
        order = order[~np.isin(order, batches[:count])]
    return _cut(order, places, global_batch)


def _cut(order: Ids, places: Ids, global_batch: int) -> Ids:
    """Global batches of a part of the samples in their order, int64 [T, G]."""
    if len(order) == len(places):
        return global_batches(order, places, global_batch)
    return order[global_batches(np.arange(len(order)), places[order], global_batch)]


def _one_more(cuts: tuple[Cut, ...], global_batch: int) -> tuple[Cut, ...]:
    """Return the cuts of an epoch after another batch of this size."""
    if cuts and cuts[-1][0] == global_batch:
        return (*cuts[:-1], (global_batch, cuts[-1][1] + 1))
    return (*cuts, (global_batch, 1))


def epoch_order(
    config: OrderConfig, seed: int, epoch: int, count: int, neighbours: Neighbours | None = None
) -> Ids:
    """The `count` sample ids of an epoch in their order, a permutation: int64 [N].

    Policy `hard` without neighbours, before the first table is made, is a shuffle.

    Sorts the raw words of a Philox counter keyed by (seed, epoch): numpy keeps that stream fixed
    across versions, which it does not promise of `permutation`.
    """
    if config.policy == "sequential":
        return np.arange(count)
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    noise = words.random_raw(count)  # uint64 [N]
    if config.policy == "hard" and neighbours is not None:
        return _grouped(noise, neighbours, config.hard.group)
    if config.window is None:
        return np.argsort(noise, kind="stable")
    run = np.arange(count) // config.window  # [N]
    run_noise = words.random_raw(count // config.window + 1)
    return np.lexsort((noise, run_noise[run]))


def _grouped(noise: NDArray[np.uint64], neighbours: Neighbours, group: int) -> Ids:
    """Each sample in random order, followed by neighbours that have not come yet, int64 [N].

    Half of them are its nearest, half are drawn from its other neighbours, or every epoch between
    two tables would make nearly the same groups.
    """
    order = np.empty(len(noise), dtype=np.int64)
    unused = np.ones(len(noise), dtype=bool)
    filled, nearest = 0, group // 2
    for sample in np.argsort(noise, kind="stable").tolist():
        if not unused[sample]:
            continue
        unused[sample] = False
        known = neighbours[sample]
        free = known[unused[known] & (known >= 0)]
        if len(free) >= group:
            drawn = np.argsort(noise[free[nearest:]], kind="stable")[: group - 1 - nearest]
            free = np.concatenate([free[:nearest], free[nearest:][drawn]])
        unused[free] = False
        end = filled + 1 + len(free)
        order[filled] = sample
        order[filled + 1 : end] = free
        filled = end
    return order


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

"""An order of samples, cut into global batches that hold no place twice: pure functions.

Shapes: N samples of a split, T global batches of an epoch, G samples of a global batch.
A *place* is a number that samples of one location share.
"""

from collections import deque
from itertools import islice

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Sample ids: rows of a split."""


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
    samples_of_place = np.bincount(places)
    batches = len(places) // global_batch
    while (usable := int(np.minimum(samples_of_place, batches).sum())) < batches * global_batch:
        batches = usable // global_batch
    return batches


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

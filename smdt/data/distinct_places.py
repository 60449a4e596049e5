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
    """Return the number of global batches of an epoch: T batches hold at most T of a place."""
    samples_of_place = np.bincount(places)
    batches = len(places) // global_batch
    while (usable := int(np.minimum(samples_of_place, batches).sum())) < batches * global_batch:
        batches = usable // global_batch
    return batches


def first_of_each(numbers: Ids) -> Ids:
    """Positions of the first occurrence of each number, ascending, int64 [n]."""
    return np.sort(np.unique(numbers, return_index=True)[1])


def _holds_place_twice(places: Ids) -> NDArray[np.bool_]:
    """For each row of [T, G] places, whether one of them repeats: bool [T]."""
    ordered = np.sort(places, axis=1)
    repeats: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return repeats


def _refill(order: Ids, places: Ids, global_batch: int) -> tuple[Ids, bool]:
    """Batches from the start of `order` until no sample is left postponed, int64 [t, G].

    Each sample is read once and a batch takes at most one postponed sample of each place, so
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
        first = first_of_each(places[left])
        exchange = _Exchange(batches, left[first], places)  # one sample of each place that is left
        for sample in np.delete(left, first).tolist():
            if len(exchange.batch) == batches.shape[1]:
                break
            exchange.place(sample)
        if len(exchange.batch) < batches.shape[1]:
            break
        batches = np.concatenate([batches, [exchange.batch]])
    return batches


class _Exchange:
    """Fills one more batch with samples of earlier batches, which take samples that are left.

    A sample goes into the last batch that lacks its place and holds a sample whose place the new
    batch lacks; the first such sample leaves it. The new batch only gains places, so what does not
    fit once never fits: each batch is walked through once for all samples, and the batches once
    for each place.

    Args:
        batches: [T, G]; changed in place.
        batch: what the new batch begins with: a sample of each place that is left, fewer than G.
        places: [N].
    """

    def __init__(self, batches: Ids, batch: Ids, places: Ids) -> None:
        self._batches, self._places = batches, places
        self.batch: list[int] = batch.tolist()
        self._held = np.zeros(int(places.max()) + 1, dtype=bool)  # places of `batch`
        self._held[places[batch]] = True
        self._next_slot = [0] * len(batches)  # all slots before it hold places of `batch`
        self._next_row: dict[int, int] = {}  # by place, no batch after it can take the place
        self._rows_of = self._rows_by_place()

    def place(self, sample: int) -> None:
        """Put a sample, of a place in `batch`, into an earlier batch for one of its samples."""
        place = int(self._places[sample])
        row = self._next_row.get(place, len(self._batches) - 1)
        rows_with_place = self._rows_of.setdefault(place, set())
        while row >= 0 and (row in rows_with_place or not self._finds_slot(row)):
            row -= 1
        self._next_row[place] = row
        if row < 0:
            return
        slot = self._next_slot[row]
        leaves = int(self._batches[row, slot])
        self.batch.append(leaves)
        self._held[self._places[leaves]] = True
        self._batches[row, slot] = sample
        rows_with_place.add(row)

    def _finds_slot(self, row: int) -> bool:
        """Move `_next_slot` of a batch to a sample whose place `batch` lacks, if it holds one."""
        start = self._next_slot[row]
        fits = ~self._held[self._places[self._batches[row, start:]]]
        found = bool(fits.any())
        self._next_slot[row] = start + (int(fits.argmax()) if found else len(fits))
        return found

    def _rows_by_place(self) -> dict[int, set[int]]:
        """Return the batches that hold each place of `batch`."""
        rows, slots = np.nonzero(self._held[self._places[self._batches]])
        found: dict[int, set[int]] = {}
        of_slots = self._places[self._batches[rows, slots]]
        for place, row in zip(of_slots.tolist(), rows.tolist(), strict=True):
            found.setdefault(place, set()).add(row)
        return found

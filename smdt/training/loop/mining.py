"""The neighbour table of each epoch of policy `hard`.

A table is made when an epoch begins and kept in the run folder until no checkpoint names it. A run
that resumes in mid-epoch finds its table there and never makes it again: on other ranks, or after
a change of the weights, it would be another one.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from data_shards.base.errors import DataError
from smdt.data import neighbours
from smdt.data.loader import TrainLoader
from smdt.data.neighbours import NeighbourTable, nearest_by_position
from smdt.data.order import DataState, HardConfig, OrderConfig, evaluation_slice
from smdt.training.loop.stage import Stage, StepContext
from smdt.training.ranks.gathering import pieces

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """Epochs whose order has one table, `begin` up to `end`, and what the table is made of."""

    kind: Literal["random", "map", "embeddings"]
    begin: int
    end: int | None
    """None: the run's."""


def phase_of(config: HardConfig, epoch: int) -> Phase:
    """Say which phase of the curriculum an epoch is in (pure)."""
    nearest_by_position = config.random_epochs
    if epoch < nearest_by_position:
        return Phase("random", 0, nearest_by_position)
    if config.refresh is None:
        return Phase("map", nearest_by_position, None)
    length = config.refresh if config.map_epochs is None else config.map_epochs
    embedded = nearest_by_position + length
    if epoch < embedded:
        return Phase("map", nearest_by_position, embedded)
    begin = epoch - (epoch - embedded) % config.refresh
    return Phase("embeddings", begin, begin + config.refresh)


@dataclass(frozen=True)
class Period:
    """Epochs in one order: their table, None for an order without, and where they end."""

    table: NeighbourTable | None
    end_epoch: int


class HardNegativeMiner:
    """Makes, keeps and finds the tables of a run; every rank has one.

    Args:
        config: the order.
        loader: of the samples.
        stage: whose embeddings say what is hard.
        context: this rank.
        folder: of the tables, shared by all ranks.
    """

    def __init__(
        self,
        config: OrderConfig,
        loader: TrainLoader,
        stage: Stage,
        context: StepContext,
        folder: Path,
    ) -> None:
        self._config = config
        self._loader = loader
        self._stage = stage
        self._context = context
        self._folder = folder

    def period(self, state: DataState, epochs: int) -> Period:
        """Return the table of the batches after `state`, made if need be; every rank calls it.

        Args:
            state: how far the run is.
            epochs: of the whole run.

        Raises:
            DataError: a table that is needed cannot be made, or the run's own is missing.
        """
        epoch, begins = self._loader.next_epoch(state)
        other = state.order is not None and state.order != self._config
        if other and not begins:  # the epoch ends in the order that it began with
            return Period(self.table(state), epoch + 1)
        if self._config.policy != "hard":
            return Period(None, epochs)
        phase = phase_of(self._config.hard, epoch)
        end = epochs if phase.end is None else min(epochs, phase.end)
        if begins and (other or epoch == phase.begin):
            return Period(self._make(phase), end)
        return Period(self.table(state), end)

    def table(self, state: DataState) -> NeighbourTable | None:
        """Return the table that a state names, None where it names none.

        Raises:
            DataError: it is missing or damaged.
        """
        if not state.table_hash:
            return None
        return NeighbourTable.load(self._folder, state.table_hash)

    def _make(self, phase: Phase) -> NeighbourTable | None:
        match phase.kind:
            case "random":
                return None
            case "map":
                return self._from_positions()
            case "embeddings":
                return self._from_embeddings()

    def prune(self, needed: Iterable[DataState]) -> None:
        """Delete the tables that none of the states names."""
        neighbours.prune(self._folder, [state.table_hash for state in needed])

    def _from_positions(self) -> NeighbourTable | None:
        """Neighbours on the map; without positions none, if embeddings will come."""
        split, count = self._loader.split, self._config.hard.neighbours
        own = evaluation_slice(len(split), self._context.rank, self._context.world_size)
        try:
            found = nearest_by_position(split, count, own)
        except DataError:
            if self._config.hard.refresh is None:
                raise
            _log.info("no positions: batches are random until the first table by embedding")
            return None
        return self._share(torch.from_numpy(found).to(self._context.device))

    def _from_embeddings(self) -> NeighbourTable:
        count = self._config.hard.neighbours
        return self._share(self._stage.neighbours(self._context, self._loader.split, count))

    def _share(self, own: torch.Tensor) -> NeighbourTable:
        """Write the ranks' rows into one file, a rank's at a time, and map it."""
        parts = pieces(own)
        digest = torch.zeros(32, dtype=torch.uint8, device=own.device)
        if self._context.rank == 0:
            shape = (len(self._loader.split), own.shape[1])
            sha256 = neighbours.save(self._folder, (part.cpu().numpy() for (part,) in parts), shape)
            digest.copy_(torch.frombuffer(bytearray.fromhex(sha256), dtype=torch.uint8))
        for _ in parts:
            pass  # a rank that writes nothing goes through them with rank 0
        dist.broadcast(digest, src=0)
        sha256 = bytes(digest.tolist()).hex()
        _log.info("neighbour table %s", sha256)
        return NeighbourTable.load(self._folder, sha256)

"""Batches of a training's stream, decoded and read ahead of the step that takes them.

Shapes: B samples of this rank's share of a global batch, G of the global batch.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from data_shards.base.errors import DataInputError
from smdt.data.batch import Batch, BatchDecoder, EncodedSample
from smdt.data.distinct_places import batches_per_epoch
from smdt.data.neighbours import NeighbourTable
from smdt.data.order import (
    DataState,
    GlobalBatch,
    Neighbours,
    OrderConfig,
    batches_left,
    rank_slice,
    stream_order,
)
from smdt.data.prefetch import prefetch_jobs
from smdt.data.quarantine import Quarantine
from smdt.data.reader import Reader
from smdt.data.replacement import ReplacingReader
from smdt.data.shard_cache import CacheConfig
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics

__all__ = ["Batch", "DataConfig", "TrainLoader"]


class DataConfig(BaseModel):
    """Training data: shards, order and prefetch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: str
    """Folder or URL made by `smdt shards`."""
    split: str = "train"
    """Split to train on."""
    order: OrderConfig = OrderConfig()
    """Sample order."""
    read_threads: PositiveInt = 4
    """Threads of each rank that read."""
    decode_threads: PositiveInt = 2
    """Threads of each rank that decode."""
    read_ahead: PositiveInt = 4
    """Batches that are read before they are decoded."""
    max_quarantined: NonNegativeInt = 100
    """Samples that the run may find damaged and replace, over all ranks; one more ends it."""
    cache: CacheConfig = CacheConfig()
    """Cache for shards of a store."""


class TrainLoader:
    """This rank's share of the global batches of a split.

    Args:
        split: of kind "pairs".
        config: how to read it.
        views: what a batch holds, such as ("ground", "aerial").
        global_batch: samples of a step, over all ranks.
        seed: of the run.
        rank: of this process, below `world_size`.
        world_size: ranks that share each global batch equally.
        device: where the images end up; a GPU also decodes them.
        quarantine: path of the list of damaged samples.
        metrics: what this rank exports.

    Attributes:
        split: that it reads.
        steps_per_epoch: global batches of every epoch.

    Raises:
        DataInputError: the split or the global batch do not fit.
        DataError: more samples are in missing or truncated tars than `config` allows.
    """

    def __init__(
        self,
        split: Split,
        config: DataConfig,
        *,
        views: Sequence[str],
        global_batch: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
        quarantine: Path,
        metrics: TrainingMetrics,
    ) -> None:
        self.steps_per_epoch = _fitting_steps(split, global_batch, world_size)
        split.require_views(views)
        split.require_tars(config.max_quarantined, "data.max_quarantined")
        order = config.order
        within_windows = order.policy == "shuffle" and order.window is not None
        split.require_cache(shuffled=order.policy != "sequential" and not within_windows)
        self.split = split
        self._config = config
        self._views = tuple(views)
        self._global_batch = global_batch
        self._seed = seed
        self._rank = rank
        self._own_slots = rank_slice(np.arange(global_batch), rank, world_size).tolist()
        self._device = device
        self._quarantine = Quarantine(quarantine, config.max_quarantined, metrics)
        self._metrics = metrics

    @property
    def start(self) -> DataState:
        """Return the state of a new run."""
        return DataState(self.split.manifest_hash, self._seed, epoch=0, consumed=0)

    def resumed(
        self, state: DataState, table: Callable[[], NeighbourTable | None] = lambda: None
    ) -> DataState:
        """The state with what its epoch still has for batches of this loader's size.

        Args:
            state: where to resume.
            table: returns the table that the state names.

        Raises:
            DataInputError: `state` is of other shards, another seed or another global batch.
        """
        self._check_state(state)
        state = state.completed(self._global_batch, self._config.order)

        def neighbours() -> Neighbours | None:
            found = table()
            return None if found is None else found.samples

        left = batches_left(state, self.split.places, self._global_batch, neighbours)
        return replace(state, left=left)

    def next_epoch(self, state: DataState) -> tuple[int, bool]:
        """The epoch of the batch after `state`, and whether that is the first batch of it."""
        full = state.consumed >= self.steps_per_epoch * self._global_batch
        if state.left == 0 or (state.left is None and full):
            return state.epoch + 1, True
        return state.epoch, state.consumed == 0

    def rewind_quarantine(self, state: DataState) -> None:
        """Drop from the list what the batches after `state` will list again; on one rank only.

        Raises:
            DataError: the list can't be written.
        """
        known = state.completed(self._global_batch, self._config.order)
        self._quarantine.rewind(state.epoch, known.batches)

    def stream(
        self, state: DataState, epochs: int, table: NeighbourTable | None = None
    ) -> Generator[Batch, None, None]:
        """The batches after `state`, until `epochs` epochs are done.

        Reading and decoding run ahead in threads, across epochs; they end when the iterator ends,
        is closed or is garbage.

        Args:
            state: where to resume.
            epochs: to be done in all.
            table: for policy `hard`, of all these epochs; it may be another one than that of
                `state` only where an epoch begins.

        Raises:
            DataInputError: `state` is of other shards, another seed or another global batch.
            DataError: (while iterating) storage stays away, or too many samples are damaged.
        """
        self._check_state(state)
        sha256 = "" if table is None else table.sha256
        assert sha256 == state.table_hash or self.next_epoch(state)[1], "one table an epoch"
        return self._stream(replace(state, table_hash=sha256), epochs, table)

    def _stream(
        self, state: DataState, epochs: int, table: NeighbourTable | None
    ) -> Generator[Batch, None, None]:
        config, stopping = self._config, Event()
        reader = ReplacingReader(
            Reader(self.split, self._metrics, stopping),
            self.split,
            self._views,
            self._rank,
        )
        maker = BatchDecoder(
            self.split, self._views, len(self._own_slots), self._device, config.decode_threads
        )

        def reads(batch: GlobalBatch) -> list[Callable[[], EncodedSample]]:
            return [partial(reader.read, batch, slot) for slot in self._own_slots]

        def make(batch: GlobalBatch, samples: list[EncodedSample]) -> Batch:
            return maker.make(samples, batch.index, batch.state)

        order = stream_order(
            config.order,
            state,
            epochs,
            self.split.places,
            self._global_batch,
            None if table is None else table.samples,
        )
        batches = prefetch_jobs(
            order,
            reads,
            make,
            threads=config.read_threads,
            finishers=maker.concurrency,
            ahead=config.read_ahead,
            stopping=stopping,
        )
        with closing(order), closing(batches):
            for batch in batches:
                self._quarantine.add(batch.replaced)
                yield batch

    def _check_state(self, state: DataState) -> None:
        if state.manifest_hash != self.split.manifest_hash:
            raise DataInputError(
                f"data.shards: the run was made with other shards than {self.split.root} holds now "
                f"(SHA-256 of manifest.json is {self.split.manifest_hash[:12]}, was "
                f"{state.manifest_hash[:12]}): bring the shards back, or start a new run."
            )
        if state.seed != self._seed:
            raise DataInputError(
                f"The run was made with seed {state.seed}, not {self._seed}: set run.seed back."
            )
        if not state.cuts and state.consumed % self._global_batch:
            raise DataInputError(
                f"The run has used {state.consumed} samples of epoch {state.epoch}, which is "
                f"not a multiple of the global batch of {self._global_batch}: set the global "
                "batch back."
            )


def _fitting_steps(split: Split, global_batch: int, world_size: int) -> int:
    """Global batches of an epoch, if the split can be trained on with such batches at all."""
    if split.kind != "pairs":
        raise DataInputError(
            f"Training needs pairs, and split {split.name!r} in {split.root} is of kind "
            f"{split.kind!r}."
        )
    if global_batch % world_size:
        raise DataInputError(
            f"A global batch of {global_batch} does not divide by {world_size} ranks."
        )
    steps = batches_per_epoch(split.places, global_batch)
    if steps == 0:
        raise DataInputError(
            f"A global batch of {global_batch} is more than split {split.name!r} in {split.root} "
            f"can fill: {len(split)} samples at {len(np.unique(split.places))} places."
        )
    return steps

"""Saving of a run: every rank writes while training waits, rank 0 publishes during training.

Publishing reads all files again for their hashes, and waits until the disk has them. Until its
rename nothing that was there before is touched: a kill at any moment loses none of it.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from data_shards.base.errors import UserError
from smdt.data.order import DataState
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import CheckpointConfig, Progress
from smdt.training.checkpoints.resume import delete_universal_forms
from smdt.training.checkpoints.retention import Retention
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.deepspeed.engine import Engine

FULL_BYTES = 1_000_000
"""A disk with less than this left is full."""


@dataclass(frozen=True)
class _Published:
    """A published checkpoint: its size in bytes, and the data states of all that were kept."""

    size: int
    states: list[DataState]


@dataclass(frozen=True)
class _Unpublished:
    """A checkpoint that all ranks have written, and rank 0 is publishing."""

    progress: Progress
    begun: float
    written: float
    published: Future[_Published]


class Saver:
    """Saves the checkpoints of a run and deletes those that its configuration does not keep.

    Args:
        folder: of the run.
        config: which checkpoints stay.
        records: files that each checkpoint carries, by name: what the run is made with.
        engines: whose states are saved.
        metrics: of this rank.
        keep_tables: deletes the neighbour tables that none of these states names.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: CheckpointConfig,
        records: Mapping[str, str],
        *,
        engines: Mapping[str, Engine],
        metrics: TrainingMetrics,
        keep_tables: Callable[[Sequence[DataState]], None],
    ) -> None:
        self._folder = folder
        self._retention = Retention(folder.checkpoints, config.keep_last)
        self._records = records
        self._engines = engines
        self._metrics = metrics
        self._keep_tables = keep_tables
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._unpublished: _Unpublished | None = None

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, and have it published; every rank calls it.

        Raises:
            UserError: it does not fit on the disk.
        """
        self.settle(progress, wait=True)
        begun = time.perf_counter()
        checkpoints = self._folder.checkpoints
        with self._full_disk_reported(progress.step):
            checkpoint.write(checkpoints, self._engines, progress, self._records)
        written = time.perf_counter()
        self._metrics.checkpoint_seconds.set(written - begun)
        if dist.get_rank() == 0:
            published = self._publisher.submit(self._publish, progress)
            self._unpublished = _Unpublished(progress, begun, written, published)
        else:
            self._metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()

    def _publish(self, progress: Progress) -> _Published:
        """Publish what all ranks have written, and delete what it replaces."""
        size = checkpoint.publish_step(self._folder.checkpoints, progress.step)
        best = None if progress.best is None else progress.best[1]
        kept = self._retention.apply(progress.step, best)
        return _Published(size, [each.data for each in (progress, *kept)])

    def settle(self, progress: Progress, *, wait: bool) -> None:
        """Report the last checkpoint if it is published by now, and delete what only others need.

        Args:
            progress: how far the run is.
            wait: whether to wait until it is published.

        Raises:
            UserError: it does not fit on the disk.
        """
        last = self._unpublished
        if last is None or not (wait or last.published.done()):
            return
        self._unpublished = None
        with self._full_disk_reported(last.progress.step):
            published = last.published.result()
        self._folder.note(
            "saved",
            step=last.progress.step,
            seconds=last.written - last.begun,
            published_seconds=time.perf_counter() - last.begun,
            bytes=published.size,
        )
        self._metrics.checkpoint_bytes.set(published.size)
        self._metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()
        delete_universal_forms(self._folder.universal)
        self._keep_tables([progress.data, *published.states])

    @contextmanager
    def _full_disk_reported(self, step: int) -> Iterator[None]:
        folder: Path = self._folder.checkpoints
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors say neither what they could not write nor where.
            free = shutil.disk_usage(folder).free
            refused = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not refused and free > FULL_BYTES:
                raise
            raise UserError(
                f"the checkpoint of step {step} does not fit on the disk of {folder}, "
                f"which has {free / 1e6:.1f} MB left: free some or lower checkpoint.keep_last"
            ) from error

"""The first global batches of a run, for tests that make steps."""

from collections.abc import Iterator
from contextlib import closing

import torch

from smdt.data.loader import Batch, TrainLoader
from smdt.data.split import Split
from smdt.stages.base_config import Config
from smdt.stages.registry import training_views
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.checkpoints.run_folder import RunFolder


def training_batches(config: Config, count: int) -> Iterator[Batch]:
    """The first global batches of a run, whole."""
    loader = TrainLoader(
        Split.open(config.data.shards, config.data.split),
        config.data,
        views=training_views(config),
        global_batch=config.batch.global_batch,
        seed=config.run.seed,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=RunFolder(config.run.out).quarantine,
        metrics=TrainingMetrics("test", config.stage, 0),
    )
    with closing(loader.stream(loader.start, 1 + count // loader.steps_per_epoch)) as stream:
        for _, batch in zip(range(count), stream, strict=False):
            yield batch

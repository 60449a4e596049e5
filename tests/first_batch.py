"""What a stage's test trains on."""

from contextlib import closing

import torch

from smdt.config import RetrievalConfig
from smdt.data.batch import Batch
from smdt.data.loader import TrainLoader
from smdt.data.split import Split
from smdt.stages import training_views
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.run_folder import RunFolder


def first_batch(config: RetrievalConfig) -> Batch:
    """The first eight training samples of a run's shards, in this process."""
    loader = TrainLoader(
        Split.open(config.data.shards, "train"),
        config.data,
        views=training_views(config),
        global_batch=8,
        seed=0,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=RunFolder(config.run.out).quarantine,
        metrics=TrainingMetrics("test", "retrieval", 0),
    )
    with closing(loader.stream(loader.start, 1)) as stream:
        return next(stream)

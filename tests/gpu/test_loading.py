"""The loaders on a GPU: the same samples in the same order, decoded where they are used."""

from contextlib import closing

import numpy as np
import pytest
import torch

from smdt.data.batch import Batch
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.loader import DataConfig, TrainLoader
from smdt.data.split import Split
from smdt.telemetry.metrics import TrainingMetrics
from tests.gpu.test_decoding import assert_close

VIEWS = ("ground", "aerial", "seg")


@pytest.fixture
def epoch(world, tmp_path):
    """A rank's batches of the first epoch, by device."""

    def batches(device: torch.device, rank: int) -> list[Batch]:
        loader = TrainLoader(
            Split.open(world, "train"),
            DataConfig(shards=str(world)),
            views=VIEWS,
            global_batch=8,
            seed=5,
            rank=rank,
            world_size=2,
            device=device,
            quarantine=tmp_path / "quarantine.jsonl",
            metrics=TrainingMetrics("test", "retrieval", rank),
        )
        with closing(loader.stream(loader.start, epochs=1)) as stream:
            return list(stream)

    return batches


def assert_same(gpu: Batch, cpu: Batch) -> None:
    assert np.array_equal(gpu.sample_ids, cpu.sample_ids)
    assert gpu.state == cpu.state
    for what in ("heading_deg", "extent_m", "elevation_min", "elevation_max"):
        assert np.array_equal(getattr(gpu, what), getattr(cpu, what), equal_nan=True)
    for view in VIEWS:
        for ours, theirs in zip(gpu.images[view], cpu.images[view], strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("rank", [0, 1])
def test_training_sees_the_same_batches(epoch, gpu, rank):
    ours, theirs = (epoch(device, rank) for device in (gpu, torch.device("cpu")))
    assert len(ours) == 8
    for batch, reference in zip(ours, theirs, strict=True):
        assert_same(batch, reference)


def test_evaluation_sees_every_sample_once(world, gpu):
    def batches(device: torch.device) -> list[Batch]:
        split = Split.open(world, "val")
        options = {"views": VIEWS, "batch": 5, "rank": 0, "world_size": 1}
        return list(EvaluationLoader(split, device=device, **options))

    ours, theirs = batches(gpu), batches(torch.device("cpu"))
    assert np.array_equal(np.concatenate([batch.sample_ids for batch in ours]), np.arange(24))
    for batch, reference in zip(ours, theirs, strict=True):
        assert_same(batch, reference)

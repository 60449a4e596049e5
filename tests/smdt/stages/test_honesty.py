"""A model learns from true pairings, and nothing from shuffled ones (docs/world.md)."""

from contextlib import closing

import numpy as np
import pytest
import torch

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from smdt.data.loader import TrainLoader
from smdt.data.split import Split
from smdt.losses.contrastive import local_soft_margin_loss, negative_mask
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.schedule import ScheduleConfig, learning_rate_factor

SCHEDULE = ScheduleConfig(warmup_steps=20)
TRAIN, VAL, BATCH, EPOCHS = 300, 150, 25, 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("honesty") / "shards"
    source = WorldSource(0, TRAIN, VAL, "easy", (32, 128), 96)
    build(source, root, BuildOptions(samples_per_shard=50), workers=2)
    return root


def recall_at_10(shards, folder, *, shuffled: bool) -> float:
    """Train for a short while in plain torch; return R@10 on the unseen city."""
    path = folder / "run.yaml"
    path.write_text(
        f"""
        stage: retrieval
        run: {{name: honesty, out: {folder}}}
        data: {{shards: {shards}}}
        geometry: {{panorama_size: [32, 128]}}
        augment: {{turn: true, mirror: true}}
        model: {{dropout: 0.0, layers: 2}}
        evaluation: {{batch: 50}}
        """
    )
    config = configuration.load(path)
    torch.manual_seed(0)
    stage = RetrievalStage(config)
    loader = TrainLoader(
        Split.open(shards, "train"),
        config.data,
        views=stage.views,
        global_batch=BATCH,
        seed=0,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=folder / "quarantine.jsonl",
        metrics=TrainingMetrics("test", "retrieval", 0),
    )
    optimizer = torch.optim.AdamW(stage.towers.parameters(), lr=1e-3, eps=1e-6)
    steps = EPOCHS * loader.steps_per_epoch
    partner = np.random.default_rng(0).permutation(BATCH)
    whole = slice(0, BATCH)
    wrong = negative_mask(torch.arange(BATCH).unsqueeze(1), whole)
    with closing(loader.stream(loader.start, EPOCHS)) as stream:
        for step, batch in enumerate(stream):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * learning_rate_factor(step, steps, SCHEDULE)
            ground, aerial = stage.augmented(batch, slice(0, BATCH), 0)
            if shuffled:
                aerial = aerial[partner]
            loss = local_soft_margin_loss(*stage.towers(ground, aerial), whole, wrong, 10.0)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.towers.parameters(), 1.0)
            optimizer.step()
    return evaluate_stage(config, stage, str(shards), "val").scores["R@10"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shuffled_pairings_stay_at_chance_where_true_ones_learn(shards, tmp_path):
    (tmp_path / "true").mkdir()
    (tmp_path / "shuffled").mkdir()
    learned = recall_at_10(shards, tmp_path / "true", shuffled=False)
    shuffled = recall_at_10(shards, tmp_path / "shuffled", shuffled=True)
    chance = 10 / VAL
    # Three standard deviations of the hits of a random order.
    assert shuffled < chance + 3 * (chance * (1 - chance) / VAL) ** 0.5
    assert learned > 2 * chance

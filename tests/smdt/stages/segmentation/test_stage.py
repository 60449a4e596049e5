import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.registry import make_stage
from smdt.training.loop.stage import StepContext
from tests.plain_engine import PlainEngine
from tests.training_batches import training_batches

pytestmark = pytest.mark.slow  # importing a network of transformers takes seconds

CPU = torch.device("cpu")


@pytest.fixture
def config(world, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: segmentation
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: {world}}}
        batch: {{global: 8}}
        augment: {{turn: true, mirror: true}}
        model:
          image_size: [32, 64]
          settings:
            depths: [1, 1, 1, 1]
            hidden_sizes: [8, 8, 16, 16]
            num_attention_heads: [1, 1, 2, 2]
            decoder_hidden_size: 32
            drop_path_rate: 0.0
            classifier_dropout_prob: 0.0
        """
    )
    return configuration.load(path)


def context(chunks=1):
    return StepContext(0, 0, 0, 1, chunks, CPU, 1.0)


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_step_is_the_mean_over_the_labelled_pixels_of_the_global_batch(config, alone, chunks):
    torch.manual_seed(0)
    stage = make_stage(config)
    batch = next(training_batches(config, 1))
    seg = [each.clone() for each in batch.images["seg"]]
    seg[1][:20] = 255  # chunks have unequal numbers of labelled pixels
    seg[6][:] = 255
    batch = replace(batch, images={**batch.images, "seg": seg})
    losses = stage.step({"segmenter": PlainEngine(stage.segmenter)}, batch, context(chunks))
    chunked = {name: p.grad.clone() for name, p in stage.segmenter.named_parameters()}

    stage.segmenter.zero_grad()
    ground, classes = stage.augmented(batch, slice(0, 8), seed=0)
    (logits,) = stage.segmenter(ground)
    loss = F.cross_entropy(logits, classes.long(), ignore_index=255)
    loss.backward()
    assert float(losses["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    largest = max(p.grad.abs().max() for p in stage.segmenter.parameters())
    for name, parameter in stage.segmenter.named_parameters():
        torch.testing.assert_close(chunked[name], parameter.grad, rtol=1e-4, atol=1e-6 * largest)


def test_panorama_and_class_map_are_turned_alike(config):
    batch = next(training_batches(config, 1))
    stage = make_stage(config)
    ground, classes = stage.augmented(batch, slice(0, 8), seed=0)
    still = make_stage(config.model_copy(update={"augment": type(config.augment)()}))
    plain_ground, plain_classes = still.augmented(batch, slice(0, 8), seed=0)
    assert not torch.equal(classes, plain_classes)
    for i in range(8):
        moves = [
            (turned, mirrored)
            for turned in range(64)
            for mirrored in (False, True)
            if torch.equal(_moved(plain_classes[i], turned, mirrored), classes[i])
        ]
        assert any(torch.equal(_moved(plain_ground[i], *move), ground[i]) for move in moves)


def _moved(image, turned, mirrored):
    rolled = image.roll(turned, -1)
    return rolled.flip(-1) if mirrored else rolled


def test_training_lowers_the_loss_and_raises_the_agreement(config, alone):
    torch.manual_seed(0)
    stage = make_stage(config)
    before = evaluate_stage(config, stage, config.data.shards, "val").scores["mIoU"]
    engine = PlainEngine(stage.segmenter, torch.optim.AdamW(stage.segmenter.parameters(), 3e-3))
    losses = [
        float(stage.step({"segmenter": engine}, batch, context())["loss"])
        for batch in training_batches(config, 4 * 8)  # epochs of 64 samples
    ]
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:2])
    assert evaluate_stage(config, stage, config.data.shards, "val").scores["mIoU"] > before + 0.1


def test_an_evaluation_counts_every_labelled_pixel_once(config):
    evaluation = evaluate_stage(config, make_stage(config), config.data.shards, "val")
    split = Split.open(config.data.shards, "val")
    loader = EvaluationLoader(split, views=("seg",), batch=8, rank=0, world_size=1, device=CPU)
    true = np.concatenate([seg.numpy().ravel() for batch in loader for seg in batch.images["seg"]])
    rows = np.array(evaluation.details["confusion"]).sum(axis=1)
    assert rows.tolist() == [int((true == label).sum()) for label in range(6)]
    assert evaluation.details["samples"] == len(split)
    assert next(iter(evaluation.scores)) == "mIoU"


def test_two_ranks_make_the_step_of_one(config, alone, tmp_path):
    """Each rank has half of the global batch, cut in two; gradients add up."""
    batch = next(training_batches(config, 1))
    seg = [each.clone() for each in batch.images["seg"]]
    seg[1][:20] = 255  # ranks have unequal numbers of labelled pixels
    images = {"ground": list(batch.images["ground"]), "seg": seg}
    torch.manual_seed(0)
    stage = make_stage(config)
    whole = replace(batch, images=images)
    losses = stage.step({"segmenter": PlainEngine(stage.segmenter)}, whole, context())
    halves = [
        replace(
            batch,
            images={view: each[rows] for view, each in images.items()},
            sample_ids=batch.sample_ids[rows],
        )
        for rows in (slice(0, 4), slice(4, 8))
    ]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        group = str(tmp_path / "two")
        found = pool.starmap(_rank_step, [(config, halves[rank], rank, group) for rank in (0, 1)])
    assert sum(loss for loss, _ in found) == pytest.approx(float(losses["loss"]), rel=1e-5)
    largest = max(p.grad.abs().max() for p in stage.segmenter.parameters())
    for name, parameter in stage.segmenter.named_parameters():
        added = found[0][1][name] + found[1][1][name]
        np.testing.assert_allclose(
            added, parameter.grad.numpy(), rtol=1e-4, atol=1e-6 * float(largest)
        )


def _rank_step(config, batch, rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    stage = make_stage(config)
    where = StepContext(0, 0, rank, 2, 2, CPU, 1.0)
    losses = stage.step({"segmenter": PlainEngine(stage.segmenter)}, batch, where)
    gradients = {name: p.grad.numpy() for name, p in stage.segmenter.named_parameters()}
    dist.destroy_process_group()
    return float(losses["loss"]), gradients

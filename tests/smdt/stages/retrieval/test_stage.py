import shutil
from dataclasses import replace

import pytest
import torch

from data_shards.base.errors import DataInputError
from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.geometry.view import resize_classes
from smdt.losses.contrastive import InfoNceConfig, SoftMarginConfig
from smdt.semantics.augment import SemanticsConfig, draw_class_masking
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.registry import references, training_views
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.training.loop.stage import StepContext
from tests.plain_engine import PlainEngine
from tests.plain_losses import PLAIN_LOSSES
from tests.training_batches import training_batches


@pytest.fixture
def config(world, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: retrieval
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: {world}}}
        batch: {{global: 8}}
        geometry: {{panorama_size: [32, 128]}}
        model: {{dropout: 0.0, width: 32, layers: 2}}
        """
    )
    return configuration.load(path)


@pytest.fixture
def batch(config):
    return next(training_batches(config, 1))


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("loss", [SoftMarginConfig(), InfoNceConfig(name="info_nce")])
def test_a_chunked_step_has_the_loss_and_gradient_of_the_whole_batch(
    config, batch, alone, loss, chunks
):
    torch.manual_seed(0)
    config = config.model_copy(update={"loss": loss})
    stage = RetrievalStage(config)
    engine = PlainEngine(stage.towers)
    context = StepContext(0, 0, 0, 1, chunks, torch.device("cpu"), 1.0)
    losses = stage.step({"two_tower": engine}, batch, context)
    chunked = {name: p.grad.clone() for name, p in stage.towers.named_parameters()}

    stage.towers.zero_grad()
    plain_loss = PLAIN_LOSSES[loss.name](*stage.towers(*stage.images(batch, slice(0, 8))))
    plain_loss.backward()
    assert engine.stepped == 1
    assert ("log_scale" in chunked) == (loss.name == "info_nce")
    assert float(losses["loss"]) == pytest.approx(float(plain_loss.detach()), rel=1e-5)
    largest = max(p.grad.abs().max() for p in stage.towers.parameters())
    for name, parameter in stage.towers.named_parameters():
        torch.testing.assert_close(chunked[name], parameter.grad, rtol=1e-4, atol=1e-6 * largest)


def test_an_evaluation_covers_the_split_and_keeps_what_the_report_shows(config):
    torch.manual_seed(0)
    evaluation = evaluate_stage(config, RetrievalStage(config), config.data.shards, "val")
    assert list(evaluation.scores) == ["R@1", "R@5", "R@10", "R@1%"]
    assert evaluation.scores["R@1"] <= evaluation.scores["R@5"] <= evaluation.scores["R@10"] <= 1
    assert evaluation.details["queries"] == 24
    assert evaluation.details["missing"] == 0
    shown = evaluation.details["retrievals"]
    assert [row["rank"] for row in shown] == sorted(row["rank"] for row in shown)
    for row in shown:
        assert row["scores"] == sorted(row["scores"], reverse=True)
        if row["rank"] == 0:
            assert row["nearest"][0] == row["query"]


def colour_oracle(config) -> float:
    """R@1 of the nearest mean colours of the polar image, by the distance of every pair."""
    stage = RetrievalStage(config.model_copy(update={"aerial": "polar"}))
    loader = EvaluationLoader(
        Split.open(config.data.shards, "val"),
        views=stage.views,
        batch=24,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )
    (batch,) = loader
    ground, aerial = (
        torch.nn.functional.adaptive_avg_pool2d(view.double(), (4, 8)).flatten(1)
        for view in stage.images(batch, slice(0, 24))
    )
    distance = torch.cdist(ground, aerial)
    return float((distance.argmin(dim=1) == torch.arange(24)).double().mean())


def test_references_say_what_a_recall_is_worth(config):
    compared = references(config, config.data.shards, "val")
    assert compared["chance"]["R@1"] == pytest.approx(1 / 24)
    assert compared["nearest mean colours"]["R@1"] == colour_oracle(config)
    torch.manual_seed(config.run.seed)
    before = evaluate_stage(config, RetrievalStage(config), config.data.shards, "val")
    assert compared["the model before training"] == before.scores


def test_neighbours_are_the_aerial_images_that_each_panorama_is_most_like(config, alone):
    stage = RetrievalStage(config)
    split = Split.open(config.data.shards, "train")
    context = StepContext(0, 0, 0, 1, 1, torch.device("cpu"))
    table = stage.neighbours(context, split, 5)
    assert table.shape == (len(split), 5)
    assert table.dtype == torch.int32
    loader = EvaluationLoader(
        split, views=stage.views, batch=7, rank=0, world_size=1, device=context.device
    )
    with torch.no_grad():
        views = [stage.towers(*stage.images(b, slice(0, len(b.sample_ids)))) for b in loader]
    ground, aerial = (torch.cat([view[side] for view in views]).double() for side in (0, 1))
    scores = ground @ aerial.T
    scores[torch.from_numpy(split.places[:, None] == split.places)] = -2
    torch.testing.assert_close(
        scores.gather(1, table.long()), scores.topk(5).values, atol=1e-6, rtol=0
    )


def test_what_cannot_be_read_has_no_neighbours_and_is_none(config, alone, world, tmp_path):
    shards = shutil.copytree(world, tmp_path / "damaged")
    split = Split.open(shards, "train")
    lost = 5
    with split.tar(lost).open("r+b") as tar:
        tar.seek(split.column("aerial_offset")[lost] + 99)
        tar.write(b"????")
    table = RetrievalStage(config).neighbours(
        StepContext(0, 0, 0, 1, 1, torch.device("cpu")), split, len(split)
    )
    assert set(table[lost].tolist()) == {-1}
    assert lost not in table
    assert (table[0] >= 0).sum() == len(split) - 2


def test_keep_and_remove_paint_the_ground_image_alone(config):
    painting = SemanticsConfig(keep={"vegetation": 0.5}, remove={"sky": 0.5, "road": 0.5})
    config = config.model_copy(update={"semantics": painting})
    batch = next(training_batches(config, 1))
    stage = RetrievalStage(config)
    ground, aerial = stage.augmented(batch, slice(2, 8), seed=3)
    plain_ground, plain_aerial = stage.images(batch, slice(2, 8))
    drawn = draw_class_masking(painting, 3, 0, batch.sample_ids[2:8])
    classes = resize_classes(batch.images["seg"][2:8], (32, 128))
    assert drawn.removed.any()
    assert torch.equal(ground, drawn.apply(plain_ground, classes))
    assert torch.equal(aerial, plain_aerial)


def test_class_maps_are_read_only_where_they_are_needed(config, batch):
    assert set(batch.images) == {"ground", "aerial"}
    painting = config.model_copy(update={"semantics": SemanticsConfig(remove={"vehicle": 0.3})})
    assert training_views(painting) == ("ground", "aerial", "seg")


def test_shards_without_class_maps_are_refused_for_keep_and_remove(tmp_path, config):
    root = tmp_path / "unlabelled"
    build(Unlabelled(0, 8, 8, "easy", (32, 128), 96), root, BuildOptions(), workers=1)
    painting = config.model_copy(
        update={
            "semantics": SemanticsConfig(remove={"vehicle": 0.3}),
            "data": config.data.model_copy(update={"shards": str(root)}),
        }
    )
    with pytest.raises(DataInputError, match=r"8 of the 8 .* no seg image: make .* `smdt segment`"):
        next(training_batches(painting, 1))


class Unlabelled(WorldSource):
    """A world whose panoramas come without class maps."""

    def sample(self, split, row):
        sample = super().sample(split, row)
        parts = {name: data for name, data in sample.parts.items() if name != "seg.png"}
        return replace(sample, parts=parts)

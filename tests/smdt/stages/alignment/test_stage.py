import math
from dataclasses import replace

import pytest
import torch

from benchmarks.plain_gan import PlainGan
from data_shards.base.errors import DataInputError, InputError
from data_shards.build.dataset import build
from data_shards.format.classes import SKY, VOID
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Sample
from data_shards.sources.source import SplitPlan
from data_shards.world.source import WorldSource
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.shard_cache import CacheConfig
from smdt.data.split import Split
from smdt.evaluation.images import ssim
from smdt.geometry.augment import AugmentConfig
from smdt.models.gan.dual_cgan import Discriminators, DualCganConfig
from smdt.semantics.augment import SemanticsConfig
from smdt.semantics.palette import to_classes
from smdt.stages import config as configuration
from smdt.stages.alignment.stage import DISCRIMINATORS, GENERATORS, TERMS, AlignmentStage, frozen
from smdt.stages.evaluation import evaluate_stage
from smdt.training.loop.stage import EvaluationData, StepContext
from tests.plain_engine import PlainEngine
from tests.training_batches import training_batches

MODELS = [
    {"arrangement": "chain"},
    {"arrangement": "chain", "feedback_loops": 2},
    {"arrangement": "parallel", "feedback_loops": 2},
]


@pytest.fixture
def make_config(world, tmp_path):
    def make(model: dict[str, object] | None = None) -> configuration.AlignmentConfig:
        return configuration.AlignmentConfig.model_validate(
            {
                "stage": "alignment",
                "run": {"name": "test", "out": str(tmp_path / "run")},
                "data": {"shards": str(world), "decode_threads": 1, "read_threads": 1},
                "batch": {"global": 4},
                "geometry": {"panorama_size": [32, 64]},
                "model": {"generator_width": 2, "discriminator_width": 2, **(model or {})},
                "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-3},
                "loss": {"l1_segmentation": 3.0, "l1_image": 2.0},
                "precision": "fp32",
            }
        )

    return make


def engines_of(stage: AlignmentStage, config) -> dict[str, PlainEngine]:
    adam = config.optimizer
    settings = {"lr": adam.learning_rate, "betas": adam.betas, "eps": adam.epsilon}
    return {
        name: PlainEngine(
            module,
            torch.optim.AdamW(module.parameters(), weight_decay=adam.weight_decay, **settings),
        )
        for name, module in stage.modules().items()
    }


def context(chunks: int = 1) -> StepContext:
    return StepContext(0, 0, 0, 1, chunks, torch.device("cpu"), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_steps_are_those_of_the_plain_loop_for_every_chunk_count(make_config, model, chunks):
    config = make_config(model)
    ours = stage_in_double(config)
    plain = PlainGan(ours, config)
    start = {name: p.detach().clone() for name, p in ours.generators.named_parameters()}
    engines = engines_of(ours, config)
    for batch in training_batches(config, 3):
        terms = ours.step(engines, batch, context(chunks))
        expected = plain.step(batch)
        assert terms.keys() == set(TERMS)
        for term, value in expected.items():
            assert float(terms[term]) == pytest.approx(value, rel=1e-6), term
    theirs = {GENERATORS: plain.generators, DISCRIMINATORS: plain.discriminators}
    for name, module in ours.modules().items():
        wanted = dict(theirs[name].named_parameters())
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, wanted[key], rtol=0, atol=1e-10)
    assert all(not torch.equal(p, start[key]) for key, p in ours.generators.named_parameters())


def stage_in_double(config) -> AlignmentStage:
    """The same fresh weights each time, in float64: rounding moves no ReLU over its edge."""
    torch.manual_seed(0)
    stage = AlignmentStage(config)
    for module in stage.modules().values():
        module.double()
    return stage


def test_a_frozen_module_is_left_out_of_graphs_and_thaws(make_config):
    net = Discriminators(make_config().model)
    with frozen(net):
        assert not any(p.requires_grad for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_the_views_of_a_pair_are_turned_and_mirrored_alike(make_config):
    config = make_config().model_copy(update={"augment": AugmentConfig(turn=True, mirror=True)})
    stage = AlignmentStage(config)
    (batch,) = training_batches(config, 1)
    everything = slice(0, 4)
    plain, drawn = stage.inputs(batch, everything), stage.augmented(batch, everything, 5)
    for row in range(4):
        found = [
            (shift, mirror)
            for shift in range(64)
            for mirror in (False, True)
            if torch.equal(moved(plain.classes[row], shift, mirror), drawn.classes[row])
        ]
        assert found
        assert any(
            torch.equal(moved(plain.aerial[row], *move), drawn.aerial[row])
            and torch.equal(moved(plain.ground[row], *move), drawn.ground[row])
            for move in found
        )


def moved(image: torch.Tensor, shift: int, mirror: bool) -> torch.Tensor:
    turned = image.roll(-shift, dims=-1)
    return turned.flip(-1) if mirror else turned


def test_what_is_removed_is_black_in_the_ground_image_alone(make_config):
    removed = SemanticsConfig(remove={"sky": 1.0})
    config = make_config().model_copy(update={"semantics": removed})
    stage = AlignmentStage(config)
    (batch,) = training_batches(config, 1)
    plain, drawn = stage.inputs(batch, slice(0, 4)), stage.augmented(batch, slice(0, 4), 5)
    sky = (plain.classes == SKY).unsqueeze(1)
    assert sky.any()
    assert torch.equal(drawn.ground, torch.where(sky, -1.0, plain.ground))
    assert torch.equal(drawn.aerial, plain.aerial)
    assert torch.equal(drawn.classes, plain.classes)


def test_inputs_are_what_the_shards_hold(make_config):
    config = make_config()
    (batch,) = training_batches(config, 1)
    views = AlignmentStage(config).inputs(batch, slice(1, 3))
    assert views.aerial.shape == views.ground.shape == views.segmentation.shape == (2, 3, 32, 64)
    assert views.ground.abs().max() <= 1
    there = torch.cat([torch.as_tensor(seg).flatten() for seg in batch.images["seg"]]).unique()
    assert set(views.classes.unique().tolist()) <= set(there.tolist())
    known = views.classes != VOID
    assert torch.equal(to_classes(views.segmentation)[known], views.classes[known])


@pytest.mark.parametrize("loops", [1, 2])
def test_an_evaluation_measures_images_classes_and_variety(make_config, loops):
    config = make_config({"feedback_loops": loops})
    torch.manual_seed(0)
    stage = AlignmentStage(config)
    evaluation = evaluate_stage(config, stage, config.data.shards, "val")
    assert list(evaluation.scores) == ["SSIM", "PSNR", "SD", "mIoU", "deviation"]
    assert evaluation.details["pairs"] == 24
    assert evaluation.details["missing"] == 0
    assert all(math.isfinite(score) for score in evaluation.scores.values())
    assert 0 <= evaluation.scores["mIoU"] <= 1
    assert evaluation.scores["deviation"] > 0


def test_a_generator_of_one_image_has_no_deviation(make_config):
    config = make_config()
    stage = AlignmentStage(config)
    with torch.no_grad():
        for parameter in stage.generators.parameters():
            parameter.zero_()
    evaluation = evaluate_stage(config, stage, config.data.shards, "val")
    assert evaluation.scores["deviation"] == pytest.approx(0, abs=1e-6)
    # Grey everywhere: the likeness of a constant image is known without the stage.
    grey = torch.full((1, 3, 32, 64), 128 / 255)
    (ground,) = true_grounds(stage, config)
    expected = ssim(grey.expand(len(ground), -1, -1, -1), ground).mean()
    assert evaluation.scores["SSIM"] == pytest.approx(float(expected), abs=1e-4)


def true_grounds(stage: AlignmentStage, config) -> list[torch.Tensor]:
    """Ground images of the held-out split, one batch of whole levels in 0 to 1."""
    loader = EvaluationLoader(
        Split.open(config.data.shards, "val"),
        views=stage.views,
        batch=24,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )
    return [
        ((stage.inputs(b, slice(0, len(b.sample_ids))).ground + 1) * 127.5).round() / 255
        for b in loader
    ]


def test_a_size_that_does_not_fit_is_refused_before_the_run(world, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"stage: alignment\nrun: {{name: a, out: {tmp_path}}}\ndata: {{shards: {world}}}\n"
    )
    with pytest.raises(InputError, match=r"geometry.*32x100.*multiples of 16"):
        configuration.load(path, ["geometry.panorama_size=[32,100]"])
    assert configuration.load(path).model == DualCganConfig()


def test_panogan_compat_scores_are_599_db_higher(make_config):
    config = make_config()
    torch.manual_seed(0)
    stage = AlignmentStage(config)
    standard = evaluate_stage(config, stage, config.data.shards, "val").scores
    published = evaluate_stage(config, stage, config.data.shards, "val", panogan_compat=True).scores
    for name in ("PSNR", "SD"):
        assert published[name] - standard[name] == pytest.approx(5.987, abs=1e-3)
    assert published["SSIM"] != standard["SSIM"]
    assert published["mIoU"] == standard["mIoU"]


class WithGallery(WorldSource):
    """The world beside a gallery of tiles, whose elevations nobody says."""

    def __init__(self) -> None:
        super().__init__(0, 4, 2, "easy", (32, 64), 64)

    @property
    def splits(self) -> dict[str, SplitPlan]:
        return {**super().splits, "aerial": SplitPlan("aerial", 3)}

    def sample(self, split: str, row: int) -> Sample:
        if split != "aerial":
            return super().sample(split, row)
        tile = super().sample("train", row)
        meta = replace(tile.meta, elevation=None)
        return Sample(meta, {name: tile.parts[name] for name in tile.parts if "aerial" in name})


def test_a_gallery_that_could_not_be_aligned_is_refused_before_the_training(make_config, tmp_path):
    root = tmp_path / "shards"
    build(WithGallery(), root, BuildOptions(), workers=1)
    data = EvaluationData(str(root), "val", 2, 0, CacheConfig())
    config = make_config()
    with pytest.raises(DataInputError, match=r"3 of the 3 .* 'aerial' .* geometry\.elevation_deg"):
        AlignmentStage(config).require_shards(data)
    said = config.geometry.model_copy(update={"elevation_deg": (-45.0, 45.0)})
    AlignmentStage(config.model_copy(update={"geometry": said})).require_shards(data)

import pytest
import torch
import torch.nn.functional as F

from data_shards.base.errors import DataInputError
from smdt.data.split import Split
from smdt.geometry.mapping import GeometryConfig, PanoramaProjection
from smdt.geometry.view import resize_classes
from smdt.report.page import write_report
from smdt.semantics.augment import draw_class_masking
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.registry import references
from smdt.stages.retrieval.aerial import aerial_images
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from smdt.training.loop.stage import StepContext
from tests.plain_engine import PlainEngine
from tests.training_batches import training_batches

CPU = torch.device("cpu")
CONTEXT = StepContext(0, 0, 0, 1, 2, CPU, 1.0)
ALL = slice(0, 8)
KINDS = ("raw", "polar", "perspective", "mixed", "aligned from shards", "aligned on the fly")


@pytest.fixture
def make_config(world, aligned_world, alignment, tmp_path):
    """A run of retrieval by what its aerial tower sees, with all augmentation."""

    def make(kind: str) -> configuration.RetrievalConfig:
        aerial, _, source = kind.partition(" ")
        path = tmp_path / "run.yaml"
        path.write_text(
            f"""
            stage: retrieval
            run: {{name: test, out: {tmp_path / "run"}}}
            data: {{shards: {aligned_world if source == "from shards" else world}}}
            batch: {{global: 8}}
            aerial: {aerial}
            alignment: {{checkpoint: {alignment.folder if source == "on the fly" else "null"}}}
            geometry: {{panorama_size: [32, 128]}}
            augment: {{turn: quarters, mirror: true}}
            semantics: {{remove: {{sky: 0.5, road: 0.5}}}}
            model: {{dropout: 0.0, width: 32, layers: 2}}
            """
        )
        config = configuration.load(path)
        assert isinstance(config, configuration.RetrievalConfig)
        return config

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_steps_mines_evaluates_and_reports(make_config, kind, alone):
    config = make_config(kind)
    torch.manual_seed(0)
    stage = RetrievalStage(config)
    losses = stage.step(
        {"two_tower": PlainEngine(stage.towers)}, next(training_batches(config, 1)), CONTEXT
    )
    assert all(p.grad is not None for p in stage.towers.parameters())
    assert 0 < float(losses["loss"]) < 100
    split = Split.open(config.data.shards, "train")
    near = stage.neighbours(CONTEXT, split, 3)
    assert near.shape == (64, 3)
    assert (near >= 0).all()
    evaluation = evaluate_stage(config, stage, config.data.shards, "val")
    assert evaluation.details["queries"] == 24
    run = RunFolder(config.run.out)
    run.create()
    run.config.write_text(config.to_yaml())
    content = {"step": 1, "scores": dict(evaluation.scores), **evaluation.details}
    write_json(run.evaluation, content)
    write_json(run.references, references(config, config.data.shards, "val"))
    page = write_report(run.root).read_text()
    assert "<td>nearest mean colours</td>" in page
    assert f"of it ({config.aerial})" in page
    assert page.count('<div class="inputs">') == 4


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_moves_both_views_and_paints_the_ground_alone(make_config, kind):
    config = make_config(kind)
    batch = next(training_batches(config, 1))
    stage = RetrievalStage(config)
    ground, aerial = stage.augmented(batch, ALL, seed=3)
    plain_ground, plain_aerial = stage.images(batch, ALL)
    painted = draw_class_masking(config.semantics, 3, 0, batch.sample_ids)
    assert painted.removed.any()
    plain_ground = painted.apply(plain_ground, resize_classes(batch.images["seg"], (32, 128)))
    seen = set()
    for row in range(8):
        moves = [
            (quarter, mirrored)
            for quarter in range(4)
            for mirrored in (False, True)
            if torch.equal(ground[row], rolled(plain_ground[row], quarter, mirrored))
        ]
        assert len(moves) == 1
        move = rotated if kind == "raw" else rolled
        expected = move(plain_aerial[row], *moves[0])
        torch.testing.assert_close(aerial[row], expected, rtol=0, atol=1e-4)
        seen |= set(moves)
    assert len(seen) > 3


def rolled(panorama, quarter, mirrored):
    turned = panorama.roll(-quarter * panorama.shape[-1] // 4, -1)
    return turned.flip(-1).roll(1, -1) if mirrored else turned


def rotated(tile, quarter, mirrored):
    for _ in range(quarter):
        tile = tile.transpose(1, 2).flip(1)  # east, the right edge, comes up
    return tile.flip(-1) if mirrored else tile


def test_a_raw_tile_is_the_tile_made_smaller(make_config):
    config = make_config("raw")
    batch = next(training_batches(config, 1))
    tiles = aerial_images(config)(batch, slice(2, 5))
    assert tiles.shape == (3, 3, 64, 64)
    for tile, source in zip(tiles, batch.images["aerial"][2:5], strict=True):
        source = source.permute(2, 0, 1).unsqueeze(0).double()
        expected = F.interpolate(source, (64, 64), mode="bilinear", antialias=True)[0]
        assert (tile - expected).abs().max() <= 1.01


@pytest.mark.parametrize("mapping", ["polar", "perspective", "mixed"])
def test_a_mapping_is_that_of_the_geometry(make_config, mapping):
    config = make_config(mapping)
    batch = next(training_batches(config, 1))
    module = PanoramaProjection(GeometryConfig(mapping=mapping, panorama_size=(32, 128)), 32, 128)
    elevation = torch.tensor([[-32.75, 32.75]]).expand(8, 2).numpy()
    expected = module(batch.images["aerial"], batch.extent_m, elevation)
    assert torch.equal(aerial_images(config)(batch, ALL), expected)


def test_aligned_images_from_shards_are_those_made_on_the_fly_but_for_the_jpeg(make_config):
    stored, made = (make_config(f"aligned {how}") for how in ("from shards", "on the fly"))
    torch.manual_seed(0)
    ours, theirs = RetrievalStage(stored), RetrievalStage(made)
    theirs.towers.load_state_dict(ours.towers.state_dict())
    (_, a), (_, b) = (
        ours.images(next(training_batches(stored, 1)), ALL),
        theirs.images(next(training_batches(made, 1)), ALL),
    )
    assert a.shape == b.shape == (8, 3, 32, 128)
    assert not torch.equal(a, b)
    assert (a.float() - b.float()).abs().mean() < 4
    with torch.no_grad():
        descriptors = [stage.towers.eval().embed_aerial(x) for stage, x in ((ours, a), (theirs, b))]
    # Of a descriptor, what the JPEG moves is little beside what two places differ by.
    moved = (descriptors[0] - descriptors[1]).norm(dim=1)
    apart = torch.pdist(descriptors[1]).mean()
    assert moved.max() < 0.2 * apart


def test_first_weights_are_the_same_whatever_makes_the_images(make_config):
    weights = []
    for kind in ("polar", "aligned from shards", "aligned on the fly"):
        torch.manual_seed(0)
        weights.append(RetrievalStage(make_config(kind)).towers.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in weights[0].items())


def test_generators_on_the_fly_are_no_part_of_what_is_trained_or_saved(make_config):
    stage = RetrievalStage(make_config("aligned on the fly"))
    (module,) = stage.modules().values()
    assert {name.split(".")[0] for name in module.state_dict()} == {"ground", "aerial"}
    _, aerial = stage.images(next(training_batches(make_config("aligned on the fly"), 1)), ALL)
    assert not aerial.requires_grad


def test_shards_without_aligned_images_are_refused(make_config, world):
    config = make_config("aligned from shards")
    with pytest.raises(DataInputError, match=r"no aligned image: make them with `smdt align`"):
        evaluate_stage(config, RetrievalStage(config), str(world), "val")

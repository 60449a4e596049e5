import pytest
import torch
import yaml

from data_shards.base.errors import InputError
from smdt.models.towers.two_tower import TwoTower
from smdt.stages import config as configuration
from smdt.stages.config import check_ranks, load_deepspeed
from smdt.training.deepspeed.optimizer import AdamConfig
from tests.distributed.runs import ROOT

CONFIGS = sorted(set((ROOT / "configs").glob("*/*.yaml")) - set(ROOT.glob("configs/monitoring/*")))
MINIMAL = {"stage": "retrieval", "run": {"name": "a", "out": "b"}, "data": {"shards": "c"}}


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_configuration_of_ours_loads_and_survives_its_own_yaml(path, tmp_path):
    config = configuration.load(path)
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert configuration.load(tmp_path / "resolved.yaml") == config


@pytest.mark.slow  # importing timm takes seconds
def test_the_towers_of_every_recipe_take_its_images():
    methods = ("smdt", "l2ltr", "sample4geo")
    recipes = [path for path in CONFIGS if path.stem in methods]
    assert len(recipes) == 3 * len(methods)
    for path in recipes:
        config = configuration.load(path)
        assert isinstance(config, configuration.RetrievalConfig)
        check_ranks(config, 8, 8)
        if config.data.order.policy == "hard":  # as published, half of a group is drawn from others
            assert config.data.order.hard.neighbours == 2 * config.data.order.hard.group == 128
        with torch.device("meta"):
            towers = TwoTower(
                config.model, **{f"{v}_size": s for v, s in config.image_sizes.items()}
            )
            images = [torch.zeros(1, 3, *size) for size in config.image_sizes.values()]
            ground, aerial = towers(*images)
        assert ground.shape == aerial.shape == (1, 1024 if path.stem == "sample4geo" else 768)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")))
def test_our_deepspeed_files_leave_to_the_yaml_what_is_its(path):
    settings = configuration.load_deepspeed(path)
    assert settings["zero_optimization"]["stage"] == int(path.stem[-1])
    assert settings["gradient_clipping"] == settings["train_batch_size"] == "auto"


def test_later_overrides_win_and_spans_are_read(minimal):
    overrides = ["run.seed=1", "schedule.length=20 steps", "run.seed=2", "batch.global=12"]
    config = configuration.load(minimal, overrides)
    assert config.run.seed == 2
    assert str(config.schedule.length) == "20 steps"
    assert config.batch.global_batch == 12


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.widht=3", "'width'"),
        ("bach.global=3", "'batch'"),
        ("run.sed=1", "'seed'"),
        ("data.order.polcy=shuffle", "'policy'"),
        ("schedule.warmup=3", "'warmup_steps'"),
        ("model.stem={kind: conv, widht: 3}", r"'model\.stem\.widht'.*'width'"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_depth(minimal, override, named):
    with pytest.raises(InputError, match=named):
        configuration.load(minimal, [override])


@pytest.mark.parametrize(
    ("backbone", "override", "named"),
    [
        ("r50_vit_b16", "model.hiden=3", r"'model\.hiden'.*'hidden'"),
        ("r50_vit_b16", "model.drop_pth=0", r"'model\.drop_pth'.*'dropout'"),
        ("convnext_base", "model.drop_pth=0", r"'model\.drop_pth'.*'drop_path'"),
        ("convnext_base", "model.width=64", r"unknown key 'model\.width'"),
    ],
)
def test_the_backbone_decides_which_keys_there_are(minimal, backbone, override, named):
    with pytest.raises(InputError, match=named):
        configuration.load(minimal, [f"model.backbone={backbone}", override])


@pytest.mark.parametrize("name", ["CVUSA retrieval", "../x", ".hidden", "a/b"])
def test_the_name_of_a_run_is_one_word(minimal, name):
    with pytest.raises(InputError, match=r"run\.name"):
        configuration.load(minimal, [f"run.name={name}"])


def test_an_unknown_class_names_the_nearest(minimal):
    sentence = "semantics.remove: 'vehicel' is not a class; did you mean 'vehicle'"
    with pytest.raises(InputError, match=sentence):
        configuration.load(minimal, ["semantics.remove.vehicel=0.3"])


def test_the_stage_decides_which_keys_there_are(minimal):
    config = configuration.load(minimal, ["stage=alignment", "model.arrangement=parallel"])
    assert isinstance(config, configuration.AlignmentConfig)
    assert config.optimizer == AdamConfig()
    with pytest.raises(InputError, match=r"model.generator_widht'.*'generator_width'"):
        configuration.load(minimal, ["stage=alignment", "model.generator_widht=3"])
    with pytest.raises(InputError, match=r"unknown key 'model.arrangement'"):
        configuration.load(minimal, ["model.arrangement=parallel"])


def test_part_of_an_optimizer_keeps_the_stage_s_other_defaults(minimal):
    config = configuration.load(minimal, ["stage=alignment", "optimizer.learning_rate=0.5"])
    assert config.optimizer == AdamConfig(learning_rate=0.5)
    assert config.optimizer.weight_decay == 0


@pytest.mark.parametrize("stage", ["retreival", ""])
def test_an_unknown_stage_is_refused_with_those_there_are(minimal, stage):
    with pytest.raises(InputError, match=r"is not a stage.*retrieval, segmentation, alignment"):
        configuration.load(minimal, [f"stage={stage}"])


@pytest.mark.parametrize(("ranks", "good"), [(1, True), (2, True), (4, False), (3, True)])
def test_ranks_times_chunks_must_divide_the_batch(minimal, ranks, good):
    config = configuration.load(minimal, ["batch.global=12", "batch.chunks=2"])
    if good:
        check_ranks(config, ranks)
    else:
        with pytest.raises(InputError, match="8 or 16"):
            check_ranks(config, ranks)


def test_every_rank_of_a_host_must_have_a_port(minimal):
    config = configuration.load(minimal, ["batch.global=8", "telemetry.metrics_port=65535"])
    check_ranks(config, 8)
    with pytest.raises(InputError, match=r"metrics_port is 65535, and 2 ranks .* at most 65534"):
        check_ranks(config, 8, 2)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["geometry.mapping=polar"], "geometry: `mapping` .* write aerial=polar"),
        (["aerial=raw", "augment.turn=true"], "augment: .* set augment.turn=quarters"),
        (["aerial=raw", "model.shared=true"], "model: .* set model.shared=false"),
        (["alignment.checkpoint=runs/a"], "alignment: .* aerial is mixed: set aerial=aligned"),
        (["aerial=panoramic"], "aerial: .*'raw', 'polar', 'perspective', 'mixed' or 'aligned'"),
    ],
)
def test_what_the_aerial_tower_cannot_see_is_refused(minimal, overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        configuration.load(minimal, overrides)


@pytest.mark.parametrize("aerial", ["raw", "polar", "perspective", "mixed", "aligned"])
def test_what_the_aerial_tower_sees_is_one_override(minimal, aerial):
    config = configuration.load(minimal, [f"aerial={aerial}", "augment.turn=quarters"])
    assert config.aerial_size == ((256, 256) if aerial == "raw" else (128, 512))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, encoding):
    path = tmp_path / "deepspeed.json"
    path.write_bytes('{"zero_optimization": {"stage": 1}}'.encode(encoding))
    assert load_deepspeed(path) == {"zero_optimization": {"stage": 1}}
    path.write_bytes(b'{"name":\n"M\xfcnster"}')
    with pytest.raises(InputError, match=r"deepspeed\.json line 2 is not UTF-8 text"):
        load_deepspeed(path)

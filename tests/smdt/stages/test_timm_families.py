"""One network of every module of timm: it trains and can be used after, or is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import timm
import torch
import yaml

from data_shards.base.errors import InputError
from smdt.models.towers.timm_tower import TimmConfig, TimmTower
from smdt.stages import config as configuration
from tests.plain_run import PlainRun, check_round_trip
from tests.training_batches import training_batches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WIDE, SQUARE, LARGE = (64, 128), (64, 64), (224, 224)
VIEWS = ("ground", "aerial")


@dataclass(frozen=True)
class Family:
    """The smallest network of a module of timm, or a refusal."""

    name: str
    size: tuple[int, int] = WIDE
    refused: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


VIT = {"depth": 2, "embed_dim": 96, "num_heads": 3}
"""Of networks that no size of is small."""
FAMILIES: dict[str, Family] = {
    "beit": Family("beit_base_patch16_224", settings=VIT),
    "byoanet": Family("lambda_resnet26t"),
    "byobnet": Family("test_byobnet"),
    "cait": Family("cait_xxs24_224"),
    "coat": Family("coat_lite_tiny"),
    "convit": Family("convit_tiny", size=SQUARE),
    "convmixer": Family("convmixer_768_32"),
    "convnext": Family("test_convnext"),
    "cpubone": Family("cpubone_nano"),
    "crossvit": Family(
        "crossvit_tiny_240", (240, 240), refused="its features are not a spatial map"
    ),
    "csatv2": Family("csatv2"),
    "cspnet": Family("cs3darknet_focus_s"),
    "cspnext": Family("cspnext_tiny"),
    "davit": Family("davit_tiny"),
    "deit": Family("deit_tiny_patch16_224"),
    "densenet": Family("densenet121"),
    "dla": Family("dla46x_c"),
    "dpn": Family("dpn48b"),
    "edgenext": Family("edgenext_xx_small"),
    "efficientformer": Family("efficientformer_l1", size=LARGE),
    "efficientformer_v2": Family("efficientformerv2_s0"),
    "efficientnet": Family("test_efficientnet"),
    "efficientvim": Family("efficientvim_m1", refused="its features are not a spatial map"),
    "efficientvit_mit": Family("efficientvit_b0"),
    "efficientvit_msra": Family("efficientvit_m0"),
    "eva": Family("vit_tiny_patch16_dinov3_qkvb"),
    "fasternet": Family("fasternet_t0"),
    "fastvit": Family("fastvit_t8"),
    "focalnet": Family("focalnet_tiny_srf"),
    "gcvit": Family("gcvit_xxtiny"),
    "gemma4_vit": Family("gemma4_vit_167m", settings=VIT),
    "ghostnet": Family("ghostnet_050"),
    "hardcorenas": Family("hardcorenas_b"),
    "hgnet": Family("hgnetv2_b0"),
    "hiera": Family("hiera_tiny_224"),
    "hieradet_sam2": Family("sam2_hiera_tiny"),
    "hrnet": Family("hrnet_w18_small"),
    "iformer": Family("iformer_t"),
    "inception_next": Family("inception_next_atto"),
    "inception_resnet_v2": Family("inception_resnet_v2", size=(96, 128)),
    "inception_v3": Family("inception_v3", size=(96, 128)),
    "inception_v4": Family("inception_v4", size=(96, 128)),
    "lcnetv2": Family("lcnetv2_small"),
    "levit": Family("levit_128s"),
    "lowformer": Family("lowformer_b0"),
    "mambaout": Family("test_mambaout"),
    "maxxvit": Family("test_coatnet"),
    "metaformer": Family("poolformerv2_s12"),
    "mlp_mixer": Family("gmlp_ti16_224"),
    "mobilenetv3": Family("lcnet_035"),
    "mobilenetv5": Family("mobilenetv5_base", settings={"channel_multiplier": 0.1}),
    "mobilevit": Family("mobilevit_xxs"),
    "mvitv2": Family("mvitv2_tiny", size=SQUARE),
    "naflexvit": Family("naflexvit_base_patch16_gap", settings=VIT),
    "nasnet": Family("nasnetalarge", settings={"num_features": 576, "stem_size": 12}),
    "nest": Family("nest_tiny", size=SQUARE),
    "nextvit": Family("nextvit_small"),
    "nfnet": Family("test_nfnet"),
    "pit": Family("pit_ti_224"),
    "pnasnet": Family("pnasnet5large"),
    "pvt_v2": Family("pvt_v2_b0"),
    "qwen3_vit": Family("qwen3_vit_88m", settings=VIT),
    "rdnet": Family("rdnet_tiny"),
    "regnet": Family("regnetx_002"),
    "repghost": Family("repghostnet_050"),
    "repvit": Family("repvit_m1"),
    "res2net": Family("res2next50"),
    "resnest": Family("resnest14d"),
    "resnet": Family("test_resnet"),
    "resnetv2": Family("resnetv2_18"),
    "rexnet": Family("rexnet_100"),
    "selecsls": Family("selecsls42"),
    "senet": Family("legacy_seresnet18"),
    "sequencer": Family("sequencer2d_s"),
    "shvit": Family("shvit_s1"),
    "sknet": Family("skresnet18"),
    "starnet": Family("starnet_s050"),
    "swiftformer": Family("swiftformer_xs"),
    "swin_transformer": Family("swin_tiny_patch4_window7_224"),
    "swin_transformer_v2": Family("swinv2_tiny_window16_256"),
    "swin_transformer_v2_cr": Family("swinv2_cr_tiny_224"),
    "tiny_vit": Family("tiny_vit_5m_224"),
    "tnt": Family("tnt_s_legacy_patch16_224"),
    "tresnet": Family("tresnet_m"),
    "twins": Family("twins_svt_small"),
    "vgg": Family("vgg11", settings={"mlp_ratio": 0.01}),
    "visformer": Family("visformer_tiny"),
    "vision_transformer": Family("test_vit"),
    "vision_transformer_hybrid": Family("vit_tiny_r_s16_p8_224"),
    "vision_transformer_relpos": Family("test_vit_relpos"),
    "vision_transformer_sam": Family(
        "samvit_base_patch16_224", settings=VIT | {"global_attn_indexes": (1,)}
    ),
    "vitamin": Family("vitamin_small_224"),
    "volo": Family("volo_d1_224"),
    "vovnet": Family("ese_vovnet19b_slim_dw"),
    "xception": Family("legacy_xception"),
    "xception_aligned": Family("xception41p"),
    "xcit": Family("xcit_nano_12_p8_224"),
    "deepseek_vit": Family("deepseek_vit_412m", size=(56, 112), settings=VIT),
}
FAST = {
    "beit",
    "convnext",
    "crossvit",
    "efficientformer_v2",
    "efficientnet",
    "efficientvit_mit",
    "eva",
    "levit",
    "mambaout",
    "maxxvit",
    "nfnet",
    "resnet",
    "swin_transformer",
    "vision_transformer",
    "vision_transformer_relpos",
    "xcit",
}


def test_every_module_of_timm_has_its_case():
    assert set(FAMILIES) == set(timm.list_modules())
    for module, family in FAMILIES.items():
        assert family.name in timm.list_models(module=module)


@pytest.fixture(scope="module")
def batches(world, tmp_path_factory):
    """The first two global batches of two pairs."""
    out = tmp_path_factory.mktemp("batches")
    return [*training_batches(config_of(Family("convnext_atto"), world, out), 2)]


@pytest.fixture
def built_small(monkeypatch):
    """Have timm build networks with other settings than their own."""

    def build_with(settings) -> None:
        if settings:
            monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **settings))

    return build_with


def config_of(family: Family, shards, out):
    content = {
        "stage": "retrieval",
        "run": {"name": "test", "out": str(out / "run")},
        "data": {"shards": str(shards), "decode_threads": 1, "read_threads": 1},
        "batch": {"global": 2},
        "geometry": {"panorama_size": [*family.size]},
        "model": {"backbone": family.name, "shared": True},
        "evaluation": {"batch": 2},
        "precision": "fp32",
    }
    path = out / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return configuration.load(path)


def embedded(stage, batch):
    return stage.embed(batch, VIEWS)


def cases(names):
    marks = {name: () if name in FAST else pytest.mark.full for name in names}
    return [pytest.param(FAMILIES[name], id=name, marks=marks[name]) for name in marks]


def trained() -> list:
    return cases(n for n, family in FAMILIES.items() if family.refused is None)


@pytest.mark.parametrize("family", trained())
def test_a_network_that_trains_is_saved_opened_exported_and_resumed(
    family, batches, world, alone, tmp_path, built_small
):
    built_small(family.settings)
    config = config_of(family, world, tmp_path)
    run = PlainRun(config, seed=0)
    require_rows_for_themselves(run.stage.towers.ground, family.size)
    check_round_trip(run, batches, tmp_path, embedded)


def require_rows_for_themselves(tower: TimmTower, size) -> None:
    """In training no statistics move, and a row is what it is whatever is beside it."""
    tower.train()
    with torch.no_grad():
        tower(torch.zeros(2, 3, *size))  # some compute a table for the size that they see first
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    generator = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(3, 3, *size, generator=generator)
    with torch.no_grad():
        rows = []
        for beside in (1, 2):
            torch.manual_seed(0)
            rows.append(tower(images[[0, beside]]))
    torch.testing.assert_close(rows[0][0], rows[1][0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(rows[0][1], rows[1][1], atol=1e-6)  # it does see the images
    assert tower.descriptor_dim == rows[0].shape[1]
    after = dict(tower.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", cases(n for n, family in FAMILIES.items() if family.refused))
def test_a_network_that_cannot_train_is_refused_by_its_name(family, built_small):
    built_small(family.settings)
    with pytest.raises(InputError, match=f"{family.name}.*{family.refused}") as refusal:
        TimmTower(TimmConfig(backbone=family.name), (family.size,))
    assert len(str(refusal.value).splitlines()) == 1

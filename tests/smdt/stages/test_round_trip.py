"""Whatever a stage trains is saved, opened, exported and resumed."""

import pytest
import yaml

from smdt.geometry.view import resize
from smdt.stages import config as configuration
from tests.plain_run import PlainRun, check_round_trip
from tests.training_batches import training_batches

pytestmark = pytest.mark.slow

SIZE = [64, 64]
VIT = {
    "image_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
BEIT = {
    **VIT,
    "out_indices": [1, 2, 3, 4],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "use_auxiliary_head": False,
    "use_relative_position_bias": True,
}
SEGMENTERS = {
    "segformer": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 16, 16],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "beit": BEIT,
    "data2vec-vision": {key: value for key, value in BEIT.items() if key != "out_features"},
    "dpt": {
        **VIT,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
        "use_auxiliary_head": False,
    },
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
        "aspp_out_channels": 16,
    },
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.5, "aspp_out_channels": 16},
    "upernet": {
        "backbone_config": {
            "model_type": "convnext",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "hidden_size": 16,
        "use_auxiliary_head": False,
    },
}
SMALL_GAN = {"generator_width": 2, "discriminator_width": 2}
SMALL_TOWER = {"width": 32, "layers": 2, "hidden": 32}
MODELS = {
    **{
        f"segmentation-{name}": ("segmentation", {"architecture": name, "settings": settings})
        for name, settings in SEGMENTERS.items()
    },
    "alignment-chain": ("alignment", SMALL_GAN),
    "alignment-feedback": ("alignment", {**SMALL_GAN, "feedback_loops": 2}),
    "alignment-parallel": ("alignment", {**SMALL_GAN, "arrangement": "parallel"}),
    "retrieval-tiny": ("retrieval", SMALL_TOWER),
    "retrieval-shared-gem": ("retrieval", {**SMALL_TOWER, "shared": True, "pooling": "gem"}),
    "retrieval-resnet": (
        "retrieval",
        {
            **SMALL_TOWER,
            "backbone": "r50_vit_b16",
            "heads": 2,
            "stem": {"kind": "resnet", "width": 8, "blocks": [1, 1, 1], "groups": 4},
        },
    ),
}


def config_of(stage, model, world, out):
    if stage == "segmentation":
        sizes = {"model": {**model, "image_size": SIZE}}
    else:
        sizes = {"model": model, "geometry": {"panorama_size": SIZE}}
    content = {
        "stage": stage,
        "run": {"name": "test", "out": str(out / "run")},
        "data": {"shards": str(world), "decode_threads": 1, "read_threads": 1},
        "batch": {"global": 2},
        "precision": "fp32",
        **sizes,
    }
    path = out / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(content))
    return configuration.load(path)


@pytest.fixture(scope="module")
def batches(world, tmp_path_factory):
    """The first two global batches of two pairs, by stage."""
    out = tmp_path_factory.mktemp("batches")
    configs = {stage: config_of(stage, model, world, out) for stage, model in MODELS.values()}
    return {stage: [*training_batches(config, 2)] for stage, config in configs.items()}


def outputs(stage, batch):
    match stage.name:
        case "retrieval":
            return stage.embed(batch, ("ground", "aerial"))
        case "alignment":
            return stage.align(stage.inputs(batch, slice(0, 2)).aerial)
    stage.segmenter.eval()
    return stage.segmenter(resize(batch.images["ground"], stage.image_size))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_saved_opened_exported_and_resumed(name, batches, world, alone, tmp_path):
    stage, model = MODELS[name]
    run = PlainRun(config_of(stage, model, world, tmp_path), seed=0)
    check_round_trip(run, batches[stage], tmp_path, outputs)

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from data_shards.base.errors import InputError, run
from data_shards.format.manifest import load
from data_shards.inspect.verify import verify
from smdt.cli.app import app
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.geometry.view import resize
from smdt.inference.segment import open_segmentation
from smdt.semantics.labels import CITYSCAPES, groups
from smdt.stages import config as configuration
from tests.checkpoints import save_untrained

pytestmark = pytest.mark.slow  # importing a network of transformers takes seconds

CPU = torch.device("cpu")
TINY = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}


@pytest.fixture
def cityscapes(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("segformer", id2label=dict(enumerate(CITYSCAPES)), **TINY)
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def saved(world, tmp_path):
    """A checkpoint of a segmentation stage that was not trained."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: segmentation
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: {world}}}
        model: {{image_size: [32, 64], settings: {TINY}}}
        """
    )
    folder = tmp_path / "step-00000001"
    save_untrained(folder, configuration.load(path), seed=1)
    return folder


def views(root):
    split = Split.open(root, "val")
    loader = EvaluationLoader(
        split, views=("ground", "seg"), batch=8, rank=0, world_size=1, device=CPU
    )
    return list(loader)


def segment(*arguments):
    with pytest.raises(SystemExit) as ended:
        run(app, ["segment", *map(str, arguments)])
    return ended.value.code


def test_a_checkpoint_of_ours_fills_in_class_maps(world, saved, tmp_path):
    out = tmp_path / "out"
    assert segment("--shards", world, "--out", out, "--checkpoint", saved) == 0
    assert verify(out, workers=1).damages == []
    made = load(out).made["seg"]
    assert made["architecture"] == "segformer"
    assert made["image_size"] == [32, 64]
    assert list(made["sha256"]) == ["weights.safetensors"]
    segmenter = open_segmentation(saved, CPU)._segmenter
    for batch in views(out):
        with torch.no_grad():
            (logits,) = segmenter(resize(batch.images["ground"], (32, 64)))
        expected = F.interpolate(logits, (32, 128), mode="bilinear").argmax(1)
        assert torch.equal(torch.stack(list(batch.images["seg"]))[..., 0].long(), expected)


def test_a_hugging_face_folder_with_cityscapes_labels_gives_our_classes(
    world, cityscapes, tmp_path
):
    out = tmp_path / "out"
    assert segment("--shards", world, "--out", out, "--checkpoint", cityscapes) == 0
    assert set(load(out).made["seg"]["sha256"]) == {"config.json", "model.safetensors"}
    annotator = open_segmentation(cityscapes, CPU)
    network = annotator._segmenter.network
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    classes = torch.tensor(groups(CITYSCAPES))
    agreeing = []
    for batch in views(out):
        for ground, seg in zip(batch.images["ground"], batch.images["seg"], strict=True):
            image = (ground.permute(2, 0, 1) - mean) / std
            with torch.no_grad():
                logits = network(pixel_values=image.unsqueeze(0)).logits
            scaled = F.interpolate(logits, (32, 128), mode="bilinear")[0].softmax(0)
            shares = torch.stack([scaled[classes == k].sum(0) for k in range(6)])
            agreeing.append((shares.argmax(0) == seg[..., 0]).float().mean())
    assert np.mean(agreeing) > 0.999


def test_a_folder_that_expects_other_colours_is_another_model(cityscapes):
    (cityscapes / "README.md").write_text("no part of it")
    path = cityscapes / "preprocessor_config.json"
    models = []
    for mean in ([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]):
        path.write_text(json.dumps({"image_mean": mean}))
        models.append(open_segmentation(cityscapes, CPU).model)
    assert models[0] != models[1]
    assert set(models[0]["sha256"]) == {"config.json", path.name, "model.safetensors"}


def test_images_of_different_sizes_are_segmented_one_by_one(cityscapes):
    annotator = open_segmentation(cityscapes, CPU)
    images = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8) for h, w in ((32, 64), (48, 40))]
    made = annotator(
        type("Batch", (), {"images": {"ground": images}, "heading_deg": np.array([90.0, np.nan])})
    )
    assert [(each.height, each.width) for each in made] == [(32, 64), (48, 40)]


def test_what_cannot_segment_is_refused(world, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: retrieval
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: {world}}}
        geometry: {{panorama_size: [32, 128]}}
        model: {{width: 32, layers: 2}}
        """
    )
    folder = tmp_path / "step-00000002"
    save_untrained(folder, configuration.load(path))
    with pytest.raises(InputError, match="is of stage 'retrieval'"):
        open_segmentation(folder, CPU)
    assert segment("--shards", world, "--out", tmp_path / "o", "--checkpoint", tmp_path) == 2

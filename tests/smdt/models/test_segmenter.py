import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from data_shards.base.errors import InputError
from smdt.geometry.view import normalise
from smdt.models.segmenter import (
    IMAGENET,
    Segmenter,
    SegmenterConfig,
    label_logits,
    make_segmenter,
    open_folder,
)
from smdt.semantics.labels import CITYSCAPES, groups

pytestmark = pytest.mark.slow  # importing a network of transformers takes seconds

TINY = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
OTHERS = {
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
        "aspp_out_channels": 16,
    },
    "mobilenet_v2": {"depth_multiplier": 0.35},
}


def images(seed=0, size=(32, 64)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def cityscapes(tmp_path):
    """A Hugging Face folder of an untrained network with Cityscapes' labels."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("segformer", id2label=dict(enumerate(CITYSCAPES)), **TINY)
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("architecture", "settings"), [("segformer", TINY), *OTHERS.items()], ids=lambda v: str(v)[:9]
)
def test_any_architecture_gives_logits_of_our_classes_as_large_as_the_image(architecture, settings):
    segmenter = make_segmenter(SegmenterConfig(architecture=architecture, settings=settings)).eval()
    (logits,) = segmenter(images())
    assert logits.shape == (2, 6, 32, 64)
    assert logits.dtype == torch.float32


def test_the_default_is_a_segformer_of_the_size_of_b0():
    parameters = sum(p.numel() for p in make_segmenter(SegmenterConfig()).parameters())
    assert 3.7e6 < parameters < 3.8e6  # Xie et al. 2021, table 2


def test_a_trained_batch_norm_keeps_its_statistics(cityscapes):
    plain = AutoModelForSemanticSegmentation.from_pretrained(cityscapes)
    norm = plain.decode_head.batch_norm
    for values in (norm.running_mean, norm.running_var, norm.weight.data):
        values += torch.rand(16)
    plain.save_pretrained(cityscapes)
    segmenter = open_folder(cityscapes)
    before = {name: buffer.clone() for name, buffer in segmenter.named_buffers()}
    inputs = normalise(images(), IMAGENET.mean, IMAGENET.std)
    torch.testing.assert_close(segmenter.eval().network(inputs).logits, plain.eval()(inputs).logits)
    segmenter.train()(images())
    after = dict(segmenter.named_buffers())
    assert before
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("architecture", "settings"), [("segformer", TINY), *OTHERS.items()])
def test_from_scratch_a_sample_is_normalised_for_itself(architecture, settings):
    torch.manual_seed(0)
    segmenter = make_segmenter(SegmenterConfig(architecture=architecture, settings=settings))
    segmenter.eval()
    (together,) = segmenter(images())
    (alone,) = segmenter(images()[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-5)
    assert together.std() > 1e-3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in segmenter.modules())


def test_grouped_labels_have_the_sum_of_their_probabilities(cityscapes):
    segmenter = open_folder(cityscapes).eval()
    (grouped,) = segmenter(images())
    (labels,) = Segmenter(segmenter.network, range(6)).eval()(images())
    assert grouped.shape == (2, 6, 32, 64)
    assert labels.shape[1] == 19
    shares = labels.double().softmax(dim=1)
    classes = torch.tensor(groups(CITYSCAPES))
    expected = torch.stack([shares[:, classes == k].sum(dim=1) for k in range(6)], dim=1)
    torch.testing.assert_close(grouped.double().softmax(dim=1), expected, rtol=1e-4, atol=1e-6)


def test_weights_in_bf16_and_statistics_in_fp32_go_together(cityscapes):
    segmenter = open_folder(cityscapes).eval()
    (logits,) = segmenter(images())
    buffers = dict(segmenter.named_buffers())
    wide = {name: buffer.clone() for name, buffer in buffers.items()}
    segmenter.bfloat16()
    for name, buffer in segmenter.named_buffers():
        buffer.data = wide[name]  # DeepSpeed leaves them so
    (narrow,) = segmenter(images())
    assert narrow.dtype == torch.float32
    assert (narrow - logits).abs().max() < 0.05 * logits.abs().max()


def test_a_folder_gives_its_weights_and_gets_a_head_of_our_classes(cityscapes):
    trained = open_folder(cityscapes).state_dict()
    started = make_segmenter(SegmenterConfig(folder=str(cityscapes))).state_dict()
    other = {name for name in trained if trained[name].shape != started[name].shape}
    assert other == {
        "network.decode_head.classifier.weight",
        "network.decode_head.classifier.bias",
    }
    assert all(torch.equal(trained[name], started[name]) for name in trained.keys() - other)


def test_a_mask_classifier_gives_each_label_the_sum_over_its_masks(tmp_path):
    backbone = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = AutoConfig.for_model(
        "mask2former",
        id2label=dict(enumerate(CITYSCAPES)),
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        num_attention_heads=2,
        dim_feedforward=16,
        decoder_layers=2,
        num_queries=5,
    )
    torch.manual_seed(0)
    AutoModelForUniversalSegmentation.from_config(config).save_pretrained(tmp_path)
    segmenter = open_folder(tmp_path).eval()
    (logits,) = segmenter(images(size=(64, 64)))
    assert logits.shape == (2, 6, 64, 64)
    with torch.no_grad():
        output = segmenter.network(normalise(images(size=(64, 64)), IMAGENET.mean, IMAGENET.std))
    masks, labels = output.masks_queries_logits.sigmoid(), output.class_queries_logits.softmax(-1)
    expected = sum(
        masks[0, query, 3, 5] * labels[0, query, label] for query in range(5) for label in range(19)
    )
    found = label_logits(output)[0, :, 3, 5].exp()
    assert len(found) == 19
    assert float(found.sum()) == pytest.approx(float(expected), rel=1e-4)
    assert float(found[3]) == pytest.approx(
        float((masks[0, :, 3, 5] * labels[0, :, 3]).sum()), rel=1e-4
    )


def test_a_folder_says_what_images_it_expects(cityscapes):
    path = cityscapes / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    segmenter = open_folder(cityscapes).eval()
    inputs = (images() / 255 - 0.5) / 0.25
    labels = F.interpolate(segmenter.network(pixel_values=inputs).logits, (32, 64), mode="bilinear")
    vegetation = CITYSCAPES.index("vegetation")  # a group of its own
    torch.testing.assert_close(segmenter(images())[0][:, 3], labels[:, vegetation])
    path.write_text(json.dumps({"do_flip_channel_order": True}))
    with pytest.raises(InputError, match="BGR"):
        open_folder(cityscapes)


@pytest.mark.parametrize(
    "damaged",
    ["{", "[]", '{"image_mean": "x"}', '{"image_std": [0, 1, 1]}', '{"image_std": [1, 1]}'],
)
def test_a_damaged_description_of_images_is_refused(cityscapes, damaged):
    path = cityscapes / "preprocessor_config.json"
    path.write_text(damaged)
    with pytest.raises(InputError, match=r"preprocessor_config\.json can't be used"):
        open_folder(cityscapes)


def test_what_is_no_folder_and_foreign_labels_are_refused(cityscapes, tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        open_folder(tmp_path)
    content = json.loads((cityscapes / "config.json").read_text())
    content["id2label"]["0"] = "floor"
    (cityscapes / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"hf: its 19 labels \(floor, sidewalk"):
        open_folder(cityscapes)


def test_a_folder_of_pickles_is_refused(cityscapes):
    weights = cityscapes / "model.safetensors"
    weights.rename(cityscapes / "pytorch_model.bin")
    with pytest.raises(InputError, match="can't be used"):
        open_folder(cityscapes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "segfromer"}, "'segfromer'; did you mean 'segformer'"),
        ({"settings": {"depth": [1]}}, "segformer has no 'depth'; did you mean 'depths'"),
        ({"settings": {**TINY, "hidden_sizes": [8]}}, "can't be built with them"),
    ],
)
def test_what_transformers_does_not_have_is_said(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        make_segmenter(SegmenterConfig(**changes))


def test_an_image_that_a_network_would_reduce_to_nothing_is_refused():
    with pytest.raises(ValidationError, match="16x64 is too small: 32 is the least"):
        SegmenterConfig(image_size=(16, 64))


def encoder_of(folder, tmp_path):
    """The same network without its decode head, as encoders are published."""
    network = AutoModelForSemanticSegmentation.from_pretrained(folder)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("decode_head")}
    network.save_pretrained(tmp_path / "encoder", state_dict=state)
    return tmp_path / "encoder"


def test_norms_without_trained_statistics_are_norms_of_a_sample(cityscapes, tmp_path):
    """Mean 0 and variance 1 would normalise nothing."""
    folder = encoder_of(cityscapes, tmp_path)
    segmenter = make_segmenter(SegmenterConfig(folder=str(folder), image_size=(32, 64)))
    norm = segmenter.network.decode_head.batch_norm
    seen = []
    norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    segmenter.train()(images())
    before, after = seen[0]
    groups = before.unflatten(1, (-1, 16)).flatten(2)
    expected = (before - groups.mean(dim=(1, 2)).view(-1, 1, 1, 1)) / (
        groups.flatten(1).var(dim=1, correction=0) + norm.eps
    ).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
    trained = make_segmenter(SegmenterConfig(folder=str(cityscapes), image_size=(32, 64)))
    assert "running_mean" in dict(trained.network.decode_head.batch_norm.named_buffers())


def test_an_encoder_alone_does_not_segment(cityscapes, tmp_path):
    folder = encoder_of(cityscapes, tmp_path)
    with pytest.raises(InputError, match=r"encoder has no weights for decode_head.*: train"):
        open_folder(folder)


def test_an_image_that_a_network_cannot_take_is_refused_before_training():
    settings = {
        "image_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
    }
    config = SegmenterConfig(architecture="dpt", settings=settings, image_size=(40, 72))
    with pytest.raises(InputError, match=r"model\.image_size: dpt can't segment images of 40x72"):
        make_segmenter(config)

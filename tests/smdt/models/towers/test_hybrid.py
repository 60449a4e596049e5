"""The paper's tower against timm's hybrid, which others wrote."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import StdConv2dSame
from timm.layers.norm_act import GroupNormAct
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch.nn.functional import normalize

from smdt.models.towers.hybrid import HybridTower, R50VitB16Config
from smdt.models.towers.stem import ResNetStemConfig
from smdt.models.towers.two_tower import TwoTower
from smdt.models.towers.weight_names import from_timm
from smdt.models.towers.weights import LoadReport, load_tensors, load_towers, read, resize_positions
from tests.google_weights import google_arrays

pytestmark = pytest.mark.slow  # importing timm takes seconds

SMALL = R50VitB16Config(
    backbone="r50_vit_b16",
    stem=ResNetStemConfig(width=8, blocks=(2, 1, 2), groups=4),
    width=12, layers=3, heads=2, hidden=48, attention="self",
)  # fmt: skip


def published_epsilons(network: torch.nn.Module) -> torch.nn.Module:
    """Flax's group norms add 1e-6 and Google's filters 1e-5 to the deviation; timm has others."""
    for module in network.modules():
        if isinstance(module, StdConv2dSame):
            module.eps = 1e-10
        if isinstance(module, GroupNormAct):
            module.eps = 1e-6
    return network


def small_timm(size: tuple[int, int]) -> VisionTransformer:
    torch.manual_seed(0)
    backbone = ResNetV2(
        layers=(2, 1, 2),
        channels=(32, 64, 128),
        stem_chs=8,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-10),
        norm_layer=partial(GroupNormAct, num_groups=4),
    )
    network = VisionTransformer(
        img_size=size,
        patch_size=1,
        embed_layer=partial(HybridEmbed, backbone=backbone),
        embed_dim=12,
        depth=3,
        num_heads=2,
        num_classes=5,
    )
    with torch.no_grad():  # so that no norm, token or bias is neutral
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return published_epsilons(network).eval()


def take_weights(tower: HybridTower, network: VisionTransformer) -> LoadReport:
    """Give a tower timm's weights, its positions as the grid that the image has."""
    # timm's files have a square grid of positions
    state = {k: v for k, v in network.state_dict().items() if k != "pos_embed"}
    fitted = load_tensors(tower, state, "timm", from_timm)
    with torch.no_grad():
        tower.encoder.class_position.copy_(network.pos_embed[:, :1])
        tower.encoder.positions.copy_(network.pos_embed[:, 1:].unflatten(1, tower.encoder.grid))
    return fitted


def descriptors(network: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """What timm's network makes of images with values 0 to 255."""
    return normalize(network.forward_features(images / 127.5 - 1)[:, 0], dim=-1)


@pytest.mark.parametrize("size", [(32, 96), (48, 48)])
def test_the_same_weights_give_timm_s_descriptors(size):
    network = small_timm(size).double()
    tower = HybridTower(SMALL, size).double().eval()
    fitted = take_weights(tower, network)
    assert fitted.fresh == ["encoder.class_position", "encoder.positions"]
    assert set(fitted.unused) == {"head.weight", "head.bias"}
    images = 255 * torch.rand(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(
        tower(images), descriptors(network, images).float(), rtol=1e-6, atol=1e-7
    )


def test_timm_reads_the_same_out_of_google_s_file(tmp_path):
    sizes = {"stem_width": 8, "blocks": (2, 1, 2), "width": 12, "layers": 3, "heads": 2}
    np.savez(tmp_path / "w.npz", **google_arrays(**sizes, hidden=48, grid=4, classes=5))
    network = small_timm((64, 64))
    network.load_pretrained(str(tmp_path / "w.npz"))
    model = TwoTower(SMALL, (64, 64), (64, 64)).eval()
    load_towers(model, read(tmp_path / "w.npz"), "w.npz")
    images = 255 * torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(
        model.double().embed_aerial(images.double()),
        descriptors(network.double(), images.double()).float(),
        rtol=1e-6,
        atol=1e-7,
    )


def test_timm_s_file_loads_whole_into_both_towers(tmp_path):
    network = small_timm((64, 64)).double()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    model = TwoTower(SMALL, (32, 96), (64, 64)).double().eval()
    fits = load_towers(model, read(tmp_path / "timm.safetensors"), "timm.safetensors")
    for view, resized in (("ground", ["encoder.positions"]), ("aerial", [])):
        assert fits[view].fresh == []
        assert set(fits[view].unused) == {"head.weight", "head.bias"}
        assert fits[view].resized == resized
    images = 255 * torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(
        model.embed_aerial(images), descriptors(network, images).float(), rtol=1e-6, atol=1e-7
    )
    grid = network.pos_embed[:, 1:].unflatten(1, (4, 4))
    torch.testing.assert_close(
        model.ground.encoder.positions, resize_positions(grid, (2, 6)), check_dtype=False
    )
    assert torch.equal(model.ground.encoder.class_position, network.pos_embed[:, :1])


def test_r50_vit_b16_is_timm_s_with_one_more_norm_a_layer():
    with torch.device("meta"):
        network = timm.create_model("vit_base_r50_s16_224", img_size=(128, 512), num_classes=0)
        model = TwoTower(R50VitB16Config(backbone="r50_vit_b16"), (128, 512), (128, 512))
    tower = sum(p.numel() for p in network.parameters()) + 12 * 2 * 768
    assert sum(p.numel() for p in model.parameters()) == 2 * tower


@pytest.mark.full
def test_the_same_weights_give_timm_s_descriptors_at_full_size():
    size = (128, 512)
    network = timm.create_model("vit_base_r50_s16_224", img_size=size, num_classes=0)
    network = published_epsilons(network).eval()
    config = R50VitB16Config(backbone="r50_vit_b16", attention="self")
    tower = HybridTower(config, size).eval()
    take_weights(tower, network)
    with torch.no_grad():
        images = 255 * torch.rand(1, 3, *size)
        torch.testing.assert_close(
            tower(images), descriptors(network, images), rtol=1e-3, atol=1e-4
        )


def test_mean_pooling_is_the_mean_of_timm_s_patches():
    size = (32, 96)
    network = small_timm(size).double()
    tower = HybridTower(SMALL.model_copy(update={"pooling": "mean"}), size).double().eval()
    take_weights(tower, network)
    images = 255 * torch.rand(2, 3, *size, dtype=torch.float64)
    expected = network.forward_features(images / 127.5 - 1)[:, 1:].mean(dim=1)
    torch.testing.assert_close(
        tower(images), normalize(expected, dim=-1).float(), rtol=1e-6, atol=1e-7
    )

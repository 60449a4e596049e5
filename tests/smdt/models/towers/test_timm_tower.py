from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize

from data_shards.base.errors import InputError
from smdt.models.towers.timm_tower import TimmConfig, TimmTower
from smdt.models.towers.two_tower import TwoTower
from smdt.models.towers.weights import load_towers, resize_positions

pytestmark = pytest.mark.slow  # importing timm takes seconds

SIZE = (64, 96)
NAMES = {
    "convnext_atto": "mean",
    "vit_tiny_patch16_224": "class_token",
    "efficientnet_b0": "mean",
    "swin_tiny_patch4_window7_224": "mean",
}
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def tower(name: str, size: tuple[int, int] = SIZE, **changes: object) -> TimmTower:
    torch.manual_seed(0)
    return TimmTower(TimmConfig(backbone=name, **changes), (size,)).eval()


def images(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return 255 * torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def scaled(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_embeds_and_every_parameter_learns(name):
    size = (224, 224) if name.startswith("swin") else SIZE
    model = tower(name, size).train()
    descriptors = model(images(size=size))
    assert descriptors.shape == (2, model.descriptor_dim)
    assert descriptors.dtype == torch.float32
    torch.testing.assert_close(descriptors.norm(dim=-1), torch.ones(2))
    descriptors[:, :7].sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.ndim > 0, key


@pytest.mark.parametrize(
    ("name", "pool", "scale"),
    [
        ("convnext_atto", "avg", IMAGENET),  # mean, then the head's own norm
        ("vit_tiny_patch16_224", "token", ([127.5] * 3, [127.5] * 3)),
        ("vit_tiny_patch16_224", "avg", ([127.5] * 3, [127.5] * 3)),
    ],
)
def test_a_descriptor_is_what_timm_makes_with_its_own_pooling(name, pool, scale):
    model = tower(name, pooling="mean" if pool == "avg" else None)
    sizes = {"img_size": SIZE, "fc_norm": False} if name.startswith("vit") else {}
    plain = timm.create_model(name, num_classes=0, global_pool=pool, **sizes).eval()
    plain.load_state_dict(model.network.state_dict())
    torch.testing.assert_close(
        model(images()), normalize(plain(scaled(images(), *scale)), dim=-1), rtol=1e-4, atol=1e-5
    )


def test_gem_is_the_root_of_the_mean_of_powers_and_learns_its_power():
    model = tower("convnext_atto", pooling="gem")
    features = model.network.forward_features(scaled(images(), *IMAGENET))
    powers = features.clamp(min=1e-6).flatten(2).pow(3).mean(dim=2).pow(1 / 3)
    expected = normalize(model.network.head.norm(powers[:, :, None, None]).flatten(1), dim=-1)
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)
    model(images())[:, :7].sum().backward()
    assert model.pool.power.grad.abs() > 0


def test_the_scale_is_the_weights_own_unless_said():
    vit, convnext = tower("vit_tiny_patch16_224"), tower("convnext_atto")
    assert list(vit._normalisation.mean) == [127.5] * 3
    assert list(convnext._normalisation.std) == pytest.approx(IMAGENET[1])
    assert list(tower("convnext_atto", normalisation="half")._normalisation.std) == [127.5] * 3


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_a_sample_is_normalised_for_itself(name):
    model = tower(name).train()
    together, alone = model(images(4)), model(images(4)[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_fixed_norms_keep_the_statistics_of_the_weights(tmp_path):
    torch.manual_seed(0)
    trained = timm.create_model("efficientnet_b0", num_classes=7)
    trained(torch.randn(8, 3, *SIZE))  # in training: statistics move
    trained.eval()
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    config = TimmConfig(backbone="efficientnet_b0", batch_norm="fixed")
    model = TwoTower(config, SIZE, SIZE).train()
    fits = load_towers(model, load_file(tmp_path / "weights.safetensors"), "weights.safetensors")
    assert fits["ground"].fresh == fits["aerial"].fresh == []
    assert set(fits["ground"].unused) == {"classifier.weight", "classifier.bias"}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    features = trained.forward_features(scaled(images(), *IMAGENET)).mean(dim=(2, 3))
    torch.testing.assert_close(
        model.embed_ground(images()), normalize(features, dim=-1), rtol=1e-3, atol=1e-4
    )
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    for parameter in model.parameters():  # DeepSpeed leaves buffers in fp32
        parameter.data = parameter.data.bfloat16()
    bf16 = model.embed_ground(images())
    assert (bf16 * normalize(features, dim=-1)).sum(-1).min() > 0.98


def test_one_vit_for_two_sizes_interpolates_its_positions():
    config = TimmConfig(backbone="vit_tiny_patch16_224", shared=True)
    model = TwoTower(config, SIZE, (64, 64)).eval()
    assert model.embed_ground(images()).shape == model.embed_aerial(images(size=(64, 64))).shape
    assert model.aerial is None


def test_a_network_without_positions_takes_any_two_sizes():
    model = TwoTower(TimmConfig(backbone="convnext_atto", shared=True), SIZE, (96, 96)).eval()
    assert model.embed_ground(images()).shape == model.embed_aerial(images(size=(96, 96))).shape


def test_positions_of_timm_s_file_are_those_of_a_square():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    model = TwoTower(TimmConfig(backbone="vit_tiny_patch16_224"), SIZE, (64, 64))
    fits = load_towers(model, plain.state_dict(), "file")
    assert fits["ground"].resized == ["network.pos_embed"]
    assert fits["aerial"].resized == []
    expected = resize_positions(plain.pos_embed[:, 1:].unflatten(1, (4, 4)), (4, 6))
    ours = model.ground.network.pos_embed
    torch.testing.assert_close(ours[:, 1:].unflatten(1, (4, 6)), expected)
    assert torch.equal(ours[:, :1], plain.pos_embed[:, :1])
    assert torch.equal(model.aerial.network.pos_embed, plain.pos_embed)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("pooling", ["class_token", "gem"])
def test_dinov2_s_file_goes_on_with_panoramas(name, pooling):
    """With registers, positions are of patches alone; without, the class token has one."""
    plain = timm.create_model(name, img_size=70, num_classes=3).eval()
    with torch.no_grad():
        plain.pos_embed.add_(torch.randn_like(plain.pos_embed))
    model = TwoTower(TimmConfig(backbone=name, pooling=pooling), (70, 98), (70, 70)).eval()
    fits = load_towers(model, plain.state_dict(), "file")
    for view, resized in (("ground", ["network.pos_embed"]), ("aerial", [])):
        assert fits[view].fresh == (["pool.power"] if pooling == "gem" else [])
        assert set(fits[view].unused) == {"head.weight", "head.bias"}
        assert fits[view].resized == resized
    tokens = plain.pos_embed.shape[1] - 25
    expected = resize_positions(plain.pos_embed[:, tokens:].unflatten(1, (5, 5)), (5, 7))
    torch.testing.assert_close(model.ground.network.pos_embed[:, tokens:], expected.flatten(1, 2))
    square = images(size=(70, 70))
    features = plain.forward_features(scaled(square, *IMAGENET))
    patches = features[:, plain.num_prefix_tokens :]
    vector = features[:, 0] if pooling == "class_token" else plain_gem(patches)
    torch.testing.assert_close(
        model.embed_aerial(square), normalize(vector, dim=-1), rtol=1e-4, atol=1e-5
    )
    assert model.embed_ground(images(size=(70, 98))).shape == (2, 384)


def plain_gem(places: torch.Tensor, power: float = 3.0) -> torch.Tensor:
    """Generalised mean of [B, N, C] over N (Radenovic et al. 2018)."""
    return places.clamp(min=1e-6).pow(power).mean(dim=1).pow(1 / power)


def test_positions_of_ours_are_those_of_the_image_that_they_were_trained_on():
    config = TimmConfig(backbone="vit_tiny_patch16_224")
    source, model = TwoTower(config, (32, 128), SIZE), TwoTower(config, (64, 64), SIZE)
    sizes = {"ground": (32, 128), "aerial": SIZE}
    fits = load_towers(model, source.state_dict(), "run", sizes)
    assert fits["ground"].resized == ["network.pos_embed"]  # 2 x 8 to 4 x 4, as many
    grid = source.ground.network.pos_embed[:, 1:].unflatten(1, (2, 8))
    torch.testing.assert_close(
        model.ground.network.pos_embed[:, 1:].unflatten(1, (4, 4)), resize_positions(grid, (4, 4))
    )


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_depths_are_timm_s(name):
    model = tower(name, pooling="gem")
    depths = model.depths()
    assert set(depths) == set(dict(model.named_parameters()))
    assert depths["pool.power"] == max(depths.values())
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    if name.startswith("vit"):
        assert depths["network.pos_embed"] == 0
        assert depths["network.blocks.5.norm1.weight"] == 6


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "nest_tiny"])
@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_blocks_are_left_out_only_where_that_is_asked_for(name, drop_path):
    """These two of timm's leave blocks out by themselves."""
    size = (224, 224)
    model = tower(name, size, drop_path=drop_path)
    seen = images(size=size)
    with torch.no_grad():
        fixed = model(seen)
        torch.manual_seed(1)
        assert torch.equal(model.train()(seen), fixed) == (drop_path == 0)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_gradient_checkpointing_changes_no_bit(name):
    gradients = []
    for checkpointing in (False, True):
        model = tower(name, drop_path=0.3, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(1)
        model(images())[:, :7].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_convnext_b_shared_is_one_network():
    with torch.device("meta"):
        model = TwoTower(TimmConfig(backbone="convnext_base", shared=True), (140, 768), (384, 384))
        plain = timm.create_model("convnext_base", num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert model.descriptor_dim == 1024


def test_what_timm_cannot_do_is_said_in_a_sentence():
    with pytest.raises(
        InputError, match=r"'convnext_bse' is not a backbone of ours or of timm; did you mean"
    ):
        tower("convnext_bse")
    with pytest.raises(InputError, match="convnext_atto has no class token; choose mean or gem"):
        tower("convnext_atto", pooling="class_token")
    with pytest.raises(InputError, match=r"does not divide an image of 60x96.*multiple of 16"):
        tower("vit_tiny_patch16_224", (60, 96))
    with pytest.raises(InputError, match=r"Google.s file is for model\.backbone=r50_vit_b16"):
        load_towers(
            TwoTower(TimmConfig(backbone="convnext_atto"), SIZE, SIZE),
            {"embedding/kernel": torch.zeros(1)},
            "file",
        )


SIZES = {"ground": (32, 128), "aerial": (64, 64)}


def test_a_shared_vit_s_positions_are_those_of_the_panorama_for_both_towers():
    """It was built for the panorama: its 2 x 8 positions are as many as the tile's 4 x 4."""
    one = TwoTower(TimmConfig(backbone="vit_tiny_patch16_224", shared=True), *SIZES.values())
    two = TwoTower(TimmConfig(backbone="vit_tiny_patch16_224"), *SIZES.values())
    fits = load_towers(two, one.state_dict(), "run", SIZES)
    assert (fits["ground"].resized, fits["aerial"].resized) == ([], ["network.pos_embed"])
    source = one.ground.network.pos_embed[:, 1:]
    assert torch.equal(two.ground.network.pos_embed[:, 1:], source)
    torch.testing.assert_close(
        two.aerial.network.pos_embed[:, 1:].unflatten(1, (4, 4)),
        resize_positions(source.unflatten(1, (2, 8)), (4, 4)),
    )


def test_positions_of_images_that_nobody_names_are_refused():
    source = TwoTower(TimmConfig(backbone="vit_tiny_patch16_224"), *SIZES.values())
    with pytest.raises(InputError, match=r"does not say which images .*: name the run"):
        load_towers(source, source.state_dict(), "weights.safetensors")


@pytest.mark.parametrize(
    ("name", "trained", "size"),
    [
        ("levit_conv_128s", (32, 128), (64, 64)),  # of as many places
        ("test_vit_relpos", (32, 128), (128, 32)),  # of the same window, turned
        ("test_vit_relpos", (64, 64), (96, 96)),
    ],
)
def test_relative_positions_of_another_grid_are_refused(name, trained, size):
    source, model = (TwoTower(TimmConfig(backbone=name), each, each) for each in (trained, size))
    sizes = dict.fromkeys(("ground", "aerial"), trained)
    with pytest.raises(InputError, match=f"weights run: .* does not fit: .*{size[0]}"):
        load_towers(model, source.state_dict(), "run", sizes)
    fits = load_towers(model, model.state_dict(), "run", dict.fromkeys(sizes, size))
    assert fits["ground"].fresh == fits["aerial"].fresh == []


def test_relative_positions_in_windows_of_equal_sides_go_with_any_image():
    config = TimmConfig(backbone="swin_tiny_patch4_window7_224", shared=True)
    source, model = (TwoTower(config, each, each) for each in ((224, 448), (448, 224)))
    sizes = dict.fromkeys(("ground", "aerial"), (224, 448))
    assert load_towers(model, source.state_dict(), "run", sizes)["ground"].fresh == []


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_dinov3_qkvb", pytest.param("swinv2_cr_tiny_224", marks=pytest.mark.full)],
)
def test_weights_in_bf16_go_with_buffers_in_fp32(name):
    size = (64, 96) if name.startswith("vit") else (224, 224)
    model = tower(name, size).train()
    wide = model(images(size=size)).detach()
    for parameter in model.parameters():  # DeepSpeed leaves buffers in fp32
        parameter.data = parameter.data.bfloat16()
    narrow = model(images(size=size))
    narrow[:, :7].sum().backward()
    assert (narrow * wide).sum(-1).min() > 0.98


def test_layers_that_timm_does_not_tell_are_asked_for_in_a_sentence():
    with pytest.raises(InputError, match=r"optimizer\.layer_decay: .*poolformer_s12"):
        tower("poolformer_s12").depths()
    with pytest.raises(InputError, match=r"gradient_checkpointing: timm has none for dla46_c"):
        tower("dla46_c", gradient_checkpointing=True)


def test_a_norm_with_statistics_of_batches_is_refused(monkeypatch):
    from timm.layers import EvoNorm2dB0

    make = partial(timm.create_model, norm_layer=EvoNorm2dB0)
    monkeypatch.setattr(timm, "create_model", make)
    with pytest.raises(InputError, match=r"resnet18 can.t be trained here: bn1 is a EvoNorm2dB0"):
        tower("resnet18")

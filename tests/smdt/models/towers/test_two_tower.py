import pytest
import torch
from pydantic import TypeAdapter

from data_shards.base.errors import InputError
from smdt.models.towers.hybrid import HybridConfig, R50VitB16Config, TinyConfig
from smdt.models.towers.stem import ConvStemConfig, ResNetStemConfig
from smdt.models.towers.timm_tower import TimmConfig
from smdt.models.towers.two_tower import TwoTower, TwoTowerConfig

STEMS = [ConvStemConfig(width=4, groups=2), ResNetStemConfig(width=4, blocks=(1, 1, 1), groups=2)]
SMALL = TinyConfig(stem=STEMS[0], width=16, layers=2, hidden=32, dropout=0)
SIZE = (32, 64)


def small(dtype: torch.dtype = torch.float32, **changes: object) -> TwoTower:
    torch.manual_seed(0)
    config = TinyConfig.model_validate({**SMALL.model_dump(), **changes})
    return TwoTower(config, SIZE, SIZE).to(dtype)


def images(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ground, aerial = 255 * torch.rand(2, batch, 3, *SIZE, generator=generator)
    return ground, aerial


def config_of(section: dict[str, object]) -> HybridConfig | TimmConfig:
    return TypeAdapter(TwoTowerConfig).validate_python(section)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_descriptors_are_fp32_and_of_unit_length_whatever_the_parameters(dtype):
    model = small(dtype)
    for descriptors in model(*images()):
        assert descriptors.dtype == torch.float32
        assert descriptors.shape == (3, model.descriptor_dim) == (3, 16)
        torch.testing.assert_close(descriptors.norm(dim=-1), torch.ones(3))


def test_bf16_stays_near_fp32():
    ground, aerial = images()
    exact, rounded = small()(ground, aerial), small(torch.bfloat16)(ground, aerial)
    for a, b in zip(exact, rounded, strict=True):
        assert (a * b).sum(-1).min() > 0.99


def test_pixels_may_be_of_any_dtype():
    model, (ground, _) = small(), images()
    whole = ground.round()
    assert torch.equal(model.embed_ground(whole), model.embed_ground(whole.to(torch.uint8)))


def test_the_scale_of_images_is_the_configured_one():
    ground, _ = images()
    halves, imagenet = small(), small(normalisation="imagenet")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    # what imagenet's scale makes of these pixels, half's makes of others
    scaled = (ground / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    same = halves.embed_ground(127.5 * scaled + 127.5)
    torch.testing.assert_close(imagenet.embed_ground(ground), same, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(halves.embed_ground(ground), same, atol=1e-3)


def test_towers_have_their_own_weights_unless_shared():
    ground, _ = images()
    apart, together = small(), small(shared=True)
    assert not torch.equal(apart.embed_ground(ground), apart.embed_aerial(ground))
    assert torch.equal(together.embed_ground(ground), together.embed_aerial(ground))
    count = [sum(p.numel() for p in model.parameters()) for model in (apart, together)]
    assert count[0] == 2 * count[1]


def test_a_shared_tower_is_saved_once():
    together = small(shared=True)
    assert set(together.state_dict()) == set(dict(together.named_parameters()))


def test_an_image_is_embedded_alike_in_every_batch():
    model, (ground, _) = small(), images(6)
    whole = model.embed_ground(ground)
    parts = torch.cat([model.embed_ground(part) for part in ground.split(2)])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["class_token", "mean", "gem"])
@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: stem.kind)
def test_every_parameter_learns_and_none_is_a_scalar(stem, pooling):
    model = small(stem=stem, pooling=pooling)
    with torch.no_grad():  # the last norm of a new block is zero, and hides what is before it
        for name, parameter in model.named_parameters():
            if "norm3.weight" in name:
                parameter.fill_(1.0)
    ground, aerial = model(*images())
    (ground @ aerial.T).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dim() > 0, name
        # softmax ignores what is added to all scores of a query: a key's bias has no gradient
        if not name.endswith("key.bias"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: stem.kind)
def test_a_tiny_model_can_learn_its_batch(stem):
    model, (ground, aerial) = small(stem=stem), images(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        scores = torch.stack(model(ground, aerial))
        loss = torch.nn.functional.cross_entropy(10 * scores[0] @ scores[1].T, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_the_backbone_s_name_decides_what_else_can_be_said():
    assert config_of({}) == config_of({"backbone": "tiny"}) == TinyConfig()
    assert config_of({"width": 64}) == TinyConfig(width=64)
    r50 = config_of({"backbone": "r50_vit_b16", "attention": "self"})
    assert isinstance(r50, R50VitB16Config)
    assert isinstance(r50.stem, ResNetStemConfig)
    timm = config_of({"backbone": "convnext_base", "drop_path": 0.2})
    assert isinstance(timm, TimmConfig)
    with pytest.raises(ValueError, match="Extra inputs"):
        config_of({"backbone": "convnext_base", "width": 64})
    assert TypeAdapter(TwoTowerConfig).validate_python(r50.model_dump()) == r50


def test_depths_grow_from_the_image_to_the_descriptor():
    depths = small(pooling="gem").depths()
    assert set(depths) == set(dict(small(pooling="gem").named_parameters()))
    for view in ("ground", "aerial"):
        assert depths[f"{view}.stem.0.weight"] == depths[f"{view}.encoder.positions"] == 0
        assert depths[f"{view}.encoder.layers.0.norm1.weight"] == 1
        assert depths[f"{view}.encoder.layers.1.attention.key.bias"] == 2
        assert depths[f"{view}.encoder.norm.bias"] == depths[f"{view}.encoder.pool.power"] == 3
    assert all(name.startswith("ground.") for name in small(shared=True).depths())
    learning = TwoTower(SMALL, SIZE, SIZE, temperature=0.07)
    assert set(learning.depths()) == set(dict(learning.named_parameters()))
    assert learning.depths()["log_scale"] == 3


def test_senseless_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 16"):
        TwoTower(SMALL, (30, 64), SIZE)
    with pytest.raises(InputError, match=r"model\.shared needs equal sizes.*32x64 and 64x64"):
        TwoTower(SMALL.model_copy(update={"shared": True}), SIZE, (64, 64))
    with pytest.raises(ValueError, match=r"model\.heads 5 must divide"):
        TinyConfig(heads=5)
    with pytest.raises(ValueError, match=r"model\.stem\.groups 3 must divide"):
        TinyConfig(stem=ConvStemConfig(groups=3))

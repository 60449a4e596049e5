import pytest
import torch

from smdt.models.stem import ConvStemConfig, ResNetStemConfig
from smdt.models.two_tower import TwoTower, TwoTowerConfig

STEMS = [ConvStemConfig(width=4, groups=2), ResNetStemConfig(width=4, blocks=(1, 1, 1), groups=2)]
SMALL = TwoTowerConfig(stem=STEMS[0], width=16, layers=2, hidden=32, dropout=0)
SIZE = (32, 64)


def small(dtype: torch.dtype = torch.float32, **changes: object) -> TwoTower:
    torch.manual_seed(0)
    config = TwoTowerConfig.model_validate({**SMALL.model_dump(), **changes})
    return TwoTower(config, SIZE, SIZE).to(dtype)


def images(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ground, aerial = torch.randn(2, batch, 3, *SIZE, generator=generator)
    return ground, aerial


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


def test_towers_have_their_own_weights_unless_shared():
    ground, _ = images()
    apart, together = small(), small(shared=True)
    assert not torch.equal(apart.embed_ground(ground), apart.embed_aerial(ground))
    assert torch.equal(together.embed_ground(ground), together.embed_aerial(ground))
    count = [sum(p.numel() for p in model.parameters()) for model in (apart, together)]
    assert count[0] == 2 * count[1]


def test_an_image_is_embedded_alike_in_every_batch():
    model, (ground, _) = small(), images(6)
    whole = model.embed_ground(ground)
    parts = torch.cat([model.embed_ground(part) for part in ground.split(2)])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: stem.kind)
def test_every_parameter_learns_and_none_is_a_scalar(stem):
    model = small(stem=stem)
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


def test_r50_vit_b16_is_expressible():
    config = TwoTowerConfig(
        stem=ResNetStemConfig(),
        width=768, layers=12, heads=12, hidden=3072,
    )  # fmt: skip
    with torch.device("meta"):
        model = TwoTower(config, (128, 512), (128, 512))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(196e6, rel=0.02)


def test_senseless_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        TwoTower(SMALL, (30, 64), SIZE)
    with pytest.raises(ValueError, match=r"model\.shared needs equal sizes"):
        TwoTower(SMALL.model_copy(update={"shared": True}), SIZE, (64, 64))
    with pytest.raises(ValueError, match=r"model\.heads 5 must divide"):
        TwoTowerConfig(heads=5)
    with pytest.raises(ValueError, match=r"model\.stem\.groups 3 must divide"):
        TwoTowerConfig(stem=ConvStemConfig(groups=3))

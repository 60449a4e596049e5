"""torch.compile as a switch of the towers: other kernels, the same descriptors and gradients."""

import pytest
import torch
from pydantic import TypeAdapter
from torch._dynamo.utils import counters

from smdt.models.towers.two_tower import TwoTower, TwoTowerConfig

pytestmark = pytest.mark.full  # a compiler takes a minute for each

SIZE = (32, 64)
OURS = {"width": 32, "layers": 2}
RESNET = {"kind": "resnet", "width": 8, "blocks": [1, 1, 1], "groups": 4}
NETWORKS = {
    "convolutional stem": OURS,
    "ResNet stem": {**OURS, "stem": RESNET},
    "ViT of timm": {"backbone": "vit_tiny_patch16_224"},
    "ConvNeXt of timm": {"backbone": "convnext_atto"},
}


def towers(network: str, *, drop: float = 0.0, **changes: object) -> TwoTower:
    torch.manual_seed(0)
    settings = NETWORKS[network]
    dropping = "drop_path" if "backbone" in settings else "dropout"
    section = {**settings, dropping: drop, **changes}
    config = TypeAdapter(TwoTowerConfig).validate_python(section)
    return TwoTower(config, SIZE, SIZE).train()


def descriptors(model: TwoTower) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ground, aerial = 255 * torch.rand(2, 4, 3, *SIZE, generator=generator)
    return torch.stack(model(ground, aerial))


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_towers_have_the_descriptors_and_gradients_of_eager_ones(network):
    found = []
    for switch in (False, True):
        counters.clear()
        model = towers(network, compile=switch)
        made = descriptors(model)
        (made[0] * made[1].flip(0).detach() * torch.linspace(0, 1, made.shape[2])).sum().backward()
        assert (counters["stats"]["unique_graphs"] > 0) == switch
        found.append((made.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (plain, expected), (compiled, gradients) = found
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("network", ["ResNet stem", "ViT of timm"])
def test_a_chunk_that_is_embedded_again_drops_the_same_units(network):
    model = towers(network, drop=0.3, compile=True)
    made = []
    for seed, learns in ((5, False), (5, True), (6, True)):
        torch.manual_seed(seed)
        with torch.set_grad_enabled(learns):
            made.append(descriptors(model).detach())
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-6)
    assert (made[2] - made[0]).abs().max() > 0.01

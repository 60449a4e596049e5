import pytest
import torch

from smdt.models.gan.discriminator import DiscriminatorOutput, tied_scores
from smdt.models.gan.dual_cgan import Discriminators, DualCganConfig, Generators, Scores

ARRANGEMENTS = [
    {"arrangement": "chain"},
    {"arrangement": "chain", "g2_input": "segmentation"},
    {"arrangement": "parallel"},
]


def tiny(**options: object) -> DualCganConfig:
    return DualCganConfig(generator_width=2, discriminator_width=2, **options)


def images(count: int = 5, size: tuple[int, int] = (32, 48)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, *size, generator=generator) * 2 - 1 for _ in range(count)]


def gradients(module: torch.nn.Module) -> float:
    found = [p.grad.abs().sum() for p in module.parameters() if p.grad is not None]
    return float(sum(found))


@pytest.mark.parametrize("options", ARRANGEMENTS)
@pytest.mark.parametrize("size", [(32, 32), (64, 128)])
def test_two_images_of_the_input_s_size_come_out(options, size):
    (aerial,) = images(1, size)
    for generated in Generators(tiny(**options))(aerial):
        assert generated.shape == aerial.shape
        assert generated.dtype == torch.float32
        assert generated.abs().max() <= 1


def test_the_chain_runs_g2_on_what_g1_made():
    (aerial,) = images(1)
    both = Generators(tiny())
    segmentation, ground = both(aerial)
    torch.testing.assert_close(segmentation, both.to_segmentation(aerial))
    beside = torch.cat([segmentation, aerial], dim=1)
    torch.testing.assert_close(ground, both.to_ground(beside))
    alone = Generators(tiny(g2_input="segmentation"))
    segmentation, ground = alone(aerial)
    torch.testing.assert_close(ground, alone.to_ground(segmentation))


def test_the_loss_of_the_image_reaches_g1_in_the_chain():
    (aerial,) = images(1)
    generators = Generators(tiny())
    _, ground = generators(aerial)
    ground.sum().backward()
    assert gradients(generators.to_segmentation) > 0
    assert gradients(generators.to_ground) > 0


@pytest.mark.parametrize("options", ARRANGEMENTS)
def test_d2_of_the_chain_reaches_g1_through_the_segmentation(options):
    aerial, segmentation, ground, generated_segmentation, generated_ground = images()
    generated_segmentation.requires_grad_()
    discriminators = Discriminators(tiny(**options)).requires_grad_(False)
    outputs = discriminators(aerial, segmentation, ground, generated_segmentation, generated_ground)
    sum(score.sum() for score in Scores.of(outputs).generated_ground).backward()
    reached = (
        generated_segmentation.grad is not None and generated_segmentation.grad.abs().sum() > 0
    )
    assert reached == (options["arrangement"] == "chain")
    assert gradients(discriminators) == 0


@pytest.mark.parametrize("arrangement", ["chain", "parallel"])
def test_scores_are_those_of_four_separate_pairs(arrangement):
    aerial, segmentation, ground, generated_segmentation, generated_ground = images()
    net = Discriminators(tiny(arrangement=arrangement))
    found = Scores.of(net(aerial, segmentation, ground, generated_segmentation, generated_ground))
    condition = generated_segmentation if arrangement == "chain" else aerial

    def d1(image: torch.Tensor):
        return DiscriminatorOutput(*net.of_segmentation(torch.cat([aerial, image], dim=1)))

    def d2(image: torch.Tensor):
        return DiscriminatorOutput(*net.of_ground(torch.cat([condition, image], dim=1)))

    expected = [
        tied_scores(d1(segmentation), d2(ground)),
        tied_scores(d2(ground), d1(segmentation)),
        tied_scores(d1(generated_segmentation), d2(ground)),
        tied_scores(d2(generated_ground), d1(segmentation)),
    ]
    ours = [
        found.true_segmentation,
        found.true_ground,
        found.generated_segmentation,
        found.generated_ground,
    ]
    for mine, theirs in zip(ours, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("arrangement", ["chain", "parallel"])
def test_feedback_is_both_discriminators_features_without_a_graph(arrangement):
    aerial, generated_segmentation, generated_ground = images(3)
    config = tiny(arrangement=arrangement, feedback_loops=2)
    net = Discriminators(config)
    features = net.feedback(aerial, generated_segmentation, generated_ground)
    assert [tuple(f.shape[2:]) for f in features] == [(16, 24), (8, 12), (4, 6), (2, 3), (2, 3)]
    assert all(f.shape[1] == config.feedback_channels for f in features)
    assert not any(f.requires_grad for f in features)
    condition = generated_segmentation if arrangement == "chain" else aerial
    *_, own = net.of_ground(torch.cat([condition, generated_ground], dim=1))
    torch.testing.assert_close(features[0][:, : own[0].shape[1]], own[0])
    generators = Generators(config)
    for plain, fed in zip(generators(aerial), generators(aerial, *features), strict=True):
        assert not torch.equal(plain, fed)


def test_networks_in_bf16_take_and_give_fp32():
    pictures = images()
    generators, discriminators = Generators(tiny()).bfloat16(), Discriminators(tiny()).bfloat16()
    assert all(x.dtype == torch.float32 for x in generators(pictures[0]))
    assert all(x.dtype == torch.float32 for x in discriminators(*pictures))


def test_the_paper_s_sizes_are_the_default():
    with torch.device("meta"):
        generators, discriminators = Generators(DualCganConfig()), Discriminators(DualCganConfig())
    assert [level[0].out_channels for level in generators.to_segmentation.down] == [
        64,
        128,
        256,
        512,
    ]
    assert generators.to_ground.down[0][0].in_channels == 6
    assert discriminators.of_ground.levels[-1][0].out_channels == 512

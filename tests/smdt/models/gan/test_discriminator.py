import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smdt.models.gan.discriminator import DiscriminatorOutput, PyramidDiscriminator, tied_scores


def plain_block(x: torch.Tensor, block: nn.Sequential, pool: bool) -> torch.Tensor:
    """Convolution, average over 2x2, instance norm, leaky ReLU, by their definitions."""
    weight = block[0].weight
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    if pool:
        x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = (x - mean) / (x.var(dim=(2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    return torch.where(x > 0, x, 0.2 * x)


def twice(x: torch.Tensor) -> torch.Tensor:
    """Bilinear upsampling by 2 of [B, C, H, W], one axis after the other, edges repeated."""
    for dim in (2, 3):
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, x.shape[dim] - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, -1, 1)], dim)
        pair = torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], dim + 1)
        x = pair.flatten(dim, dim + 1)
    return x


@pytest.mark.parametrize("size", [(32, 32), (48, 80)])
def test_equals_the_network_written_out(size):
    torch.manual_seed(0)
    net = PyramidDiscriminator(6, 2).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    judged = DiscriminatorOutput(*net(x))
    levels = []
    for number, level in enumerate(net.levels):
        x = plain_block(x, level, pool=number < 4)
        levels.append(x)
    sides = [plain_block(x, side, False) for x, side in zip(levels, net.laterals, strict=True)]
    pyramid = [sides[4], sides[4] + sides[3]]
    for side in (sides[2], sides[1], sides[0]):
        pyramid.append(side + twice(pyramid[-1]))
    for scale, feature in enumerate(reversed(pyramid)):
        feature = plain_block(feature, net.heads[scale], False)
        torch.testing.assert_close(judged.features[scale], feature)
        torch.testing.assert_close(judged.real[scale], net.real(feature))
        torch.testing.assert_close(judged.embedding[scale], net.embed(feature))


@pytest.mark.parametrize("size", [(32, 32), (32, 128), (64, 256)])
def test_scales_are_halves_down_to_a_sixteenth_twice(size):
    judged = DiscriminatorOutput(*PyramidDiscriminator(6, 2)(torch.randn(3, 6, *size)))
    height, width = size
    for scale, factor in enumerate((2, 4, 8, 16, 16)):
        area = (height // factor, width // factor)
        assert judged.real[scale].shape == (3, 1, *area)
        assert judged.embedding[scale].shape == judged.features[scale].shape == (3, 2, *area)


@pytest.mark.parametrize("width", [2, 64])
def test_parameter_count_is_that_of_the_closed_form(width):
    with torch.device("meta"):
        net = PyramidDiscriminator(6, width)
    w = width
    levels = 9 * (6 * w + 2 * w * w + 8 * w * w + 32 * w * w + 64 * w * w)
    laterals = 2 * w * (w + 2 * w + 4 * w + 8 * w + 8 * w)
    heads = 5 * 2 * w * w
    ends = (w + 1) + (w * w + w)
    assert sum(p.numel() for p in net.parameters()) == levels + laterals + heads + ends


def test_a_score_is_real_plus_the_inner_product_with_the_partner():
    generator = torch.Generator().manual_seed(0)

    def judgement() -> DiscriminatorOutput:
        real = [torch.randn(2, 1, 3, 4, generator=generator) for _ in range(5)]
        embedding = [torch.randn(2, 6, 3, 4, generator=generator) for _ in range(5)]
        return DiscriminatorOutput(real, embedding, embedding)

    one, other = judgement(), judgement()
    for scale, score in enumerate(tied_scores(one, other)):
        for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)):
            inner = sum(
                float(one.embedding[scale][b, e, i, j] * other.embedding[scale][b, e, i, j])
                for e in range(6)
            )
            expected = float(one.real[scale][b, 0, i, j]) + inner
            assert float(score[b, 0, i, j]) == pytest.approx(expected, abs=1e-5)


def test_only_the_last_two_convolutions_have_a_bias():
    net = PyramidDiscriminator(6, 2)
    biased = [name for name, _ in net.named_parameters() if name.endswith("bias")]
    assert biased == ["real.bias", "embed.bias"]

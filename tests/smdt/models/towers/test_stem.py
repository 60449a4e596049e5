import pytest
import torch
import torch.nn.functional as F

from smdt.models.towers.stem import (
    Bottleneck,
    ConvStemConfig,
    ResNetStemConfig,
    ResNetV2Stem,
    StandardisedConv,
    make_stem,
)


def test_filters_are_standardised_whatever_their_scale():
    conv = StandardisedConv(5, 7, 3)
    x = torch.randn(2, 5, 8, 12)
    weight = conv.weight.detach()
    flat = weight.flatten(1)
    standard = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, standard.view_as(weight), padding=1), rtol=1e-3, atol=1e-4
    )
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(37).add_(4)
    torch.testing.assert_close(conv(x), before, rtol=1e-3, atol=1e-3)


def test_padding_is_tensorflows_same():
    # stride 2 on an even size: nothing before, one after (kernel 3); two before, three after (7)
    for kernel, before in ((3, 0), (7, 2)):
        conv = StandardisedConv(1, 1, kernel, stride=2)
        y = conv(torch.ones(1, 1, 16, 16))
        assert y.shape == (1, 1, 8, 8)
        flat = conv.weight.detach().flatten()
        standard = ((flat - flat.mean()) / flat.std(correction=0)).view(kernel, kernel)
        torch.testing.assert_close(y[0, 0, 0, 0], standard[before:, before:].sum())


@pytest.mark.slow
def test_r50_has_the_published_sizes():
    r50 = ResNetStemConfig()
    with torch.device("meta"):
        stem = ResNetV2Stem(r50)
        features = stem(torch.empty(1, 3, 128, 512))
    assert features.shape == (1, r50.channels, 8, 32) == (1, 1024, 8, 32)
    # ResNet-50 up to its third stage has 8,543,296 with batch norm, which has as many parameters
    # as group norm; here that stage has nine blocks and not six
    block = 1024 * 256 + 9 * 256 * 256 + 256 * 1024 + 2 * (256 + 256 + 1024)
    assert sum(p.numel() for p in stem.parameters()) == 8_543_296 + 3 * block


def test_filters_in_bf16_are_standardised_in_fp32():
    conv = StandardisedConv(64, 8, 3).bfloat16()
    with torch.no_grad():
        conv.weight.add_(4)  # the mean is a hundred deviations: bf16 sums would lose them
    weight = conv.weight.detach().double().flatten(1)
    standard = (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    x = torch.randn(1, 64, 4, 4)
    expected = F.conv2d(x.double(), standard.view_as(conv.weight), padding=1)
    torch.testing.assert_close(conv(x.bfloat16()).double(), expected, rtol=0.02, atol=0.3)


def test_a_new_block_is_its_shortcut():
    block = Bottleneck(16, 4, stride=1, groups=2)
    x = torch.rand(2, 16, 6, 6)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(
    "config", [ConvStemConfig(), ResNetStemConfig(width=8, blocks=(1, 1, 2), groups=4)]
)
def test_output_stride_is_16_for_every_multiple_of_16(config):
    stem = make_stem(config)
    for height, width in ((16, 16), (48, 80), (64, 256)):
        assert stem(torch.zeros(1, 3, height, width)).shape == (
            (1, config.channels, height // 16, width // 16)
        )


def test_gradient_checkpointing_changes_no_bit():
    config = ResNetStemConfig(width=8, blocks=(1, 2, 1), groups=4)
    x, gradients = torch.randn(1, 3, 32, 48), []
    for recompute in (False, True):
        torch.manual_seed(0)
        stem = ResNetV2Stem(config, recompute)
        stem(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in stem.parameters()])
    assert all(map(torch.equal, *gradients))

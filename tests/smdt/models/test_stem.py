import pytest
import torch
import torch.nn.functional as F

from smdt.models.stem import (
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

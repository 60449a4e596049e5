"""Each layer beside the pair that it stands for, made of torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smdt.models.gan.layers import DoublingConv2d, HalvingConv2d, instance_norm

SIZES = [(2, 2), (4, 6), (10, 2)]


def randn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def conv_then_average(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    return F.avg_pool2d(F.conv2d(x, conv.weight, padding=1), 2)


def upsample_then_conv(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    doubled = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(F.pad(doubled, (1, 1, 1, 1), "reflect"), conv.weight, conv.bias)


def assert_same(x: torch.Tensor, conv: nn.Conv2d, found: torch.Tensor, wanted: torch.Tensor):
    """Outputs are equal, and the gradients of all that goes in."""
    torch.testing.assert_close(found, wanted)
    inputs = [x, *conv.parameters()]
    coefficients = randn(*wanted.shape)
    ours = torch.autograd.grad(found, inputs, coefficients)
    theirs = torch.autograd.grad(wanted, inputs, coefficients)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("size", SIZES)
def test_halving_is_a_convolution_and_an_average(size):
    conv = HalvingConv2d(3, 5).double()
    x = randn(2, 3, *size)
    assert_same(x, conv, conv(x), conv_then_average(x, conv))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), *SIZES])
@pytest.mark.parametrize("bias", [False, True])
def test_doubling_is_nearest_upsampling_and_a_convolution(size, bias):
    conv = DoublingConv2d(3, 5, bias=bias).double()
    x = randn(2, 3, *size)
    assert_same(x, conv, conv(x), upsample_then_conv(x, conv))


@pytest.mark.parametrize("layer", [HalvingConv2d, DoublingConv2d])
def test_in_bf16_only_rounding_is_between_them(layer):
    conv = layer(16, 8)
    x = randn(1, 16, 8, 8).detach().float()
    exact = conv(x)
    found = conv.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)


def test_fresh_weights_are_those_of_torch_s_convolution():
    for layer in (HalvingConv2d, DoublingConv2d):
        torch.manual_seed(0)
        ours = layer(3, 5).weight
        torch.manual_seed(0)
        assert torch.equal(ours, nn.Conv2d(3, 5, 3, bias=False).weight)


def test_the_norm_is_instance_norm_without_parameters():
    norm = instance_norm(4)
    assert list(norm.parameters()) == []
    x = randn(2, 4, 3, 5)
    torch.testing.assert_close(norm(x), nn.InstanceNorm2d(4)(x))

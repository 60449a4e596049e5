import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smdt.models.gan.unet import ResidualBlock, UNet, check_size


def norm(x: torch.Tensor) -> torch.Tensor:
    """Instance norm by its definition."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def reflected(x: torch.Tensor) -> torch.Tensor:
    """One row and column of reflection on each side, by index."""
    height, width = x.shape[2:]
    rows = [1, *range(height), height - 2]
    columns = [1, *range(width), width - 2]
    return x[:, :, rows][:, :, :, columns]


def shifted_sum(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 3x3 convolution of padded x as a sum over the nine shifts."""
    height, width = x.shape[2] - 2, x.shape[3] - 2
    return sum(
        (x[:, :, i : i + height, j : j + width].movedim(1, 3) @ weight[:, :, i, j].T).movedim(3, 1)
        for i in range(3)
        for j in range(3)
    )


def plain_unet(net: UNet, x: torch.Tensor) -> torch.Tensor:
    """The generator of docs/method.md, written out without modules."""
    skips = []
    for level in net.down:
        x = shifted_sum(F.pad(x, (1, 1, 1, 1)), level[0].weight)
        x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        x = norm(x).clamp(min=0)
        skips.append(x)
    for block in [*net.before, *net.after]:
        first, _, _, second, _ = block.residual
        y = norm(shifted_sum(reflected(x), first.weight)).clamp(min=0)
        x = x + norm(shifted_sum(reflected(y), second.weight))
    for level in net.up:
        x = torch.cat([x, skips.pop()], dim=1)
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = norm(shifted_sum(reflected(x), level[0].weight)).clamp(min=0)
    x = torch.cat([x, skips.pop()], dim=1)
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    last = net.out[0]
    return torch.tanh(shifted_sum(reflected(x), last.weight) + last.bias.view(1, -1, 1, 1))


@pytest.mark.parametrize("size", [(32, 48)])
def test_equals_the_network_written_out(size):
    torch.manual_seed(0)
    net = UNet(3, 2, width=2).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(net(x), plain_unet(net, x))


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
@pytest.mark.parametrize("channels", [(3, 3), (6, 3), (3, 6)])
def test_output_has_the_size_of_the_input_and_lies_in_the_range_of_tanh(size, channels):
    inputs, outputs = channels
    y = UNet(inputs, outputs, width=2)(torch.randn(2, inputs, *size))
    assert y.shape == (2, outputs, *size)
    assert y.abs().max() <= 1


def expected_parameters(inputs: int, outputs: int, w: int, feedback: int) -> int:
    """Kernels level by level, and the last convolution's bias."""
    down = 9 * (inputs * w + w * 2 * w + 2 * w * 4 * w + 4 * w * 8 * w)
    blocks = 9 * 2 * 9 * (8 * w) ** 2
    up = 9 * (16 * w * 4 * w + 8 * w * 2 * w + 4 * w * w + 2 * w * outputs) + outputs
    places = [8 * w, 16 * w, 8 * w, 4 * w, 2 * w] if feedback else []
    return down + blocks + up + sum((feedback + place) * place for place in places)


@pytest.mark.parametrize("shape", [(3, 3, 64, 0), (6, 3, 64, 128), (3, 6, 5, 4), (3, 3, 2, 0)])
def test_parameter_count_is_that_of_the_closed_form(shape):
    with torch.device("meta"):
        net = UNet(*shape)
    assert sum(p.numel() for p in net.parameters()) == expected_parameters(*shape)


def biased_before_a_norm(net: nn.Module) -> list[str]:
    """Names of convolutions whose bias an instance norm would take away again."""
    return [
        f"{name}.{index}"
        for name, part in net.named_modules()
        if isinstance(part, nn.Sequential)
        for index, (layer, *rest) in enumerate(zip(part, part[1:], part[2:], strict=False))
        if isinstance(layer, nn.Conv2d)
        and layer.bias is not None
        and any(isinstance(after, nn.GroupNorm) for after in rest)
    ]


def test_no_convolution_before_a_norm_has_a_bias():
    wrong = nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1), nn.ReLU())
    assert biased_before_a_norm(wrong) == [".0"]
    assert biased_before_a_norm(UNet(3, 3, 2, feedback=4)) == []


def test_every_parameter_gets_a_gradient_and_deeper_feedback_is_used():
    net = UNet(3, 3, width=2, feedback=4)
    features = tuple(torch.randn(1, 4, 32 // scale, 32 // scale) for scale in (2, 4, 8, 16, 16))
    x = torch.randn(1, 3, 32, 32)
    net(x, features).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    first = net(x)
    for place in range(5):
        changed = list(features)
        changed[place] = torch.randn_like(changed[place])
        assert not torch.equal(net(x, changed), net(x, features)), place
    assert not torch.equal(first, net(x, features))


def test_without_weight_the_feedback_changes_nothing():
    net = UNet(3, 3, width=2, feedback=4, alpha=0.0)
    features = [torch.randn(1, 4, 32 // scale, 32 // scale) for scale in (2, 4, 8, 16, 16)]
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net(x, features), net(x))


def test_samples_of_a_batch_do_not_see_each_other():
    net = UNet(3, 3, width=2).double()
    x = torch.randn(3, 3, 32, 48, dtype=torch.float64)
    together = net(x)
    torch.testing.assert_close(torch.cat([net(one[None]) for one in x]), together)


def test_a_residual_block_without_kernels_is_the_identity():
    block = ResidualBlock(3)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 4, 6)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("size", [(32, 100), (16, 64), (24, 64), (0, 64)])
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*multiples of 16, 32 or more"):
        check_size(*size)
    check_size(32, 64)

"""Layers of the GAN's networks: convolutions that halve or double an image, and their norm.

A 2x2 average behind a 3x3 convolution, and nearest upsampling by 2 before one, are linear like the
convolution itself. So each pair is one 4x4 convolution, with stride 2 or transposed: 16 products a
pixel of the smaller image where the pair takes 36, and no image of the larger size in between.

B batch, C channels, H rows, W columns.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HALVING = ((0.5, 0.5, 0.0, 0.0), (0.0, 0.5, 0.5, 0.0), (0.0, 0.0, 0.5, 0.5))
"""What each tap of three adds to those of four, along an axis: the average of two neighbours."""
_DOUBLING = ((0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0, 0.0), (1.0, 1.0, 0.0, 0.0))
"""The same transposed: every pixel is repeated."""


class HalvingConv2d(nn.Conv2d):
    """A zero-padded 3x3 convolution without bias, then the average of each 2x2 pixels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outputs, H / 2, W / 2], H and W even."""
        return F.conv2d(x, _spread(self.weight, _HALVING), stride=2, padding=1)


class DoublingConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a reflect-padded 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 3, padding=1, padding_mode="reflect", bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outputs, 2H, 2W]."""
        # The second row of the upsampled image is its first again: reflecting repeats the edge.
        padded = F.pad(x, (1, 1, 1, 1), "replicate")
        kernel = _spread(self.weight.transpose(0, 1), _DOUBLING)
        return F.conv_transpose2d(padded, kernel, self.bias, stride=2, padding=3)


def instance_norm(channels: int) -> nn.Module:
    """Return instance norm without affine part: group norm with each channel a group.

    By definition the same, and on CPUs twice as fast and nearer to the truth in bf16.
    """
    return nn.GroupNorm(channels, channels, affine=False)


def _spread(weight: Tensor, taps: tuple[tuple[float, ...], ...]) -> Tensor:
    """Make 4x4 kernels [., ., 4, 4] of [., ., 3, 3], with the same `taps` along both axes."""
    both = _both_axes(taps, weight.dtype, weight.device)
    return (weight.flatten(2) @ both).view(*weight.shape[:2], 4, 4)


@functools.cache
def _both_axes(
    taps: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[9, 16]: what each of 3x3 taps adds to each of 4x4."""
    along = torch.tensor(taps, dtype=dtype, device=device)
    return torch.kron(along, along)

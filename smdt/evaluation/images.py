"""Similarity of generated and real images: SSIM, PSNR, sharpness difference.

Standard definitions on values scaled to 0 to 1, each figure a mean over images. `panogan_compat`
gives the ones that the cross-view literature publishes since PanoGAN.

B batch, C channels, H rows, W columns.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2
"""Wang et al. 2004: window, its deviation in pixels, and the two constants at a range of 1."""

PANOGAN_GAIN_DB = 20 * math.log10(255 / 128)
"""The published figures divide by 128 where the range is 255: 5.99 dB on PSNR and on SD."""


class ImageQuality:
    """Means over all images of all batches and ranks.

    Args:
        panogan_compat: PSNR and SD 5.99 dB higher and SSIM over zero-padded borders, as published.
    """

    def __init__(self, panogan_compat: bool = False) -> None:
        self._compat = panogan_compat
        self._sums: Tensor | None = None

    @torch.no_grad()
    def update(self, generated: Tensor, real: Tensor) -> None:
        """Add a batch.

        Args:
            generated: [B, C, H, W], values 0 to 255, any dtype.
            real: the same.
        """
        a, b = (images.float() / 255 for images in (generated, real))
        gain = PANOGAN_GAIN_DB if self._compat else 0.0
        values_B3 = torch.stack(
            [
                ssim(a, b, zero_padded=self._compat),
                psnr(a, b) + gain,
                sharpness_difference(a, b) + gain,
            ],
            dim=1,
        ).double()
        counted = F.pad(values_B3, (0, 1), value=1.0).sum(dim=0)
        self._sums = counted if self._sums is None else self._sums + counted

    def compute(self, device: torch.device) -> dict[str, float]:
        """Return SSIM, PSNR and SD (both dB) by name; every rank calls it and gets the same.

        NaN where no rank had an image; infinite where a pair is equal in every pixel.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        if self._sums is not None:
            sums += self._sums.to(device)
        if dist.is_initialized():
            dist.all_reduce(sums)
        means = (sums[:3] / sums[3]).tolist()
        return dict(zip(("SSIM", "PSNR", "SD"), means, strict=True))


def ssim(a: Tensor, b: Tensor, zero_padded: bool = False) -> Tensor:
    """Structural similarity of each pair, [B], mean over channels and the windows of all pixels.

    Args:
        a: [B, C, H, W], values 0 to 1.
        b: the same.
        zero_padded: zeros lie outside the image; else the image is reflected there, as in
            torchmetrics.
    """
    blurred = [_blur(image, zero_padded) for image in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b, square_a, square_b, product = blurred
    variance = square_a - mean_a**2 + square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + LUMINANCE_CONSTANT) / (
        mean_a**2 + mean_b**2 + LUMINANCE_CONSTANT
    )
    structure = (2 * covariance + CONTRAST_CONSTANT) / (variance + CONTRAST_CONSTANT)
    return (luminance * structure).mean(dim=(1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, [B], dB; values 0 to 1."""
    return -10 * (a - b).square().mean(dim=(1, 2, 3)).log10()


def sharpness_difference(a: Tensor, b: Tensor) -> Tensor:
    """Sharpness difference of each pair, [B], dB, higher is more alike; values 0 to 1.

    Mathieu et al. 2016: a pixel's sharpness is its absolute difference to the one above plus that
    to the one on its left. Mean over channels and the pixels that have both neighbours.
    """
    return -10 * (_sharpness(a) - _sharpness(b)).abs().mean(dim=(1, 2, 3)).log10()


def _sharpness(images: Tensor) -> Tensor:
    """[B, C, H-1, W-1]."""
    inner = images[..., 1:, 1:]
    return (inner - images[..., :-1, 1:]).abs() + (inner - images[..., 1:, :-1]).abs()


def _blur(images: Tensor, zero_padded: bool) -> Tensor:
    """Gaussian mean around each pixel, row by row, then column by column."""
    half = WINDOW // 2
    offset = torch.arange(-half, half + 1, device=images.device)
    weight = torch.exp(-(offset**2) / (2 * SIGMA**2)).to(images.dtype)
    weight = weight / weight.sum()
    padded = F.pad(images, (half,) * 4, mode="constant" if zero_padded else "reflect")
    rows = F.conv2d(padded.flatten(0, 1).unsqueeze(1), weight.view(1, 1, 1, -1))
    return F.conv2d(rows, weight.view(1, 1, -1, 1)).view_as(images)

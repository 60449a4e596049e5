"""The generator: a U-Net with residual blocks at a sixteenth of the image's size.

As in PanoGAN (Wu et al. 2022): four levels down, 4 + 5 residual blocks, four levels
up. Instance norms are not affine, and convolutions before one have no bias: its true gradient is
zero, and Adam would turn the noise of it into full steps.

B batch, C channels, H rows, W columns, F channels of feedback.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smdt.models.gan.layers import DoublingConv2d, HalvingConv2d, instance_norm

STRIDE = 16
SMALLEST = 32
"""The least rows and columns of an image: reflection at 1/16 needs two of each."""
BLOCKS_BEFORE, BLOCKS_AFTER = 4, 5
"""Residual blocks before and after the place where the deepest feedback enters."""


def check_size(height: int, width: int) -> None:
    """Check that the networks of the GAN take images of this size.

    Raises:
        ValueError: they do not.
    """
    if height % STRIDE or width % STRIDE or min(height, width) < SMALLEST:
        raise ValueError(
            f"an image of {height}x{width} does not fit the generators: choose a height and a "
            f"width that are multiples of {STRIDE}, {SMALLEST} or more"
        )


class ResidualBlock(nn.Module):
    """A residual block: two reflect-padded 3x3 convolutions with instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_reflected_conv(channels),
            nn.ReLU(inplace=True),
            *_reflected_conv(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        y: Tensor = x + self.residual(x)
        return y


class Feedback(nn.Module):
    """Adds to a decoder's input what the discriminators saw there in the loop before.

    `x + alpha * norm(conv1x1([features, x]))`.
    """

    def __init__(self, channels: int, features: int, alpha: float) -> None:
        super().__init__()
        self._alpha = alpha
        self.block = nn.Sequential(
            nn.Conv2d(features + channels, channels, 1, bias=False), instance_norm(channels)
        )

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """[B, C, H, W] with features [B, F, H, W] to [B, C, H, W]."""
        y: Tensor = x + self._alpha * self.block(torch.cat([features, x], dim=1))
        return y


class UNet(nn.Module):
    """Images to images of the same size.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        width: channels of the first level; the next have 2, 4 and 8 times as many.
        feedback: F, 0 for a network without feedback.
        alpha: weight of the feedback.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, feedback: int = 0, alpha: float = 0.5
    ) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8)]
        self.down = nn.ModuleList(
            _down(before, after)
            for before, after in zip([inputs, *widths[:-1]], widths, strict=True)
        )
        deepest = widths[-1]
        self.before = nn.Sequential(*(ResidualBlock(deepest) for _ in range(BLOCKS_BEFORE)))
        self.after = nn.Sequential(*(ResidualBlock(deepest) for _ in range(BLOCKS_AFTER)))
        # Each level of the decoder takes the level below and the encoder's feature of its size.
        joined = [2 * channels for channels in reversed(widths)]
        self.up = nn.ModuleList(
            _up(before, after)
            for before, after in zip(joined[:-1], reversed(widths[:-1]), strict=True)
        )
        self.out = nn.Sequential(DoublingConv2d(joined[-1], outputs, bias=True), nn.Tanh())
        places = [deepest, *joined] if feedback else []
        self.feedback = nn.ModuleList(Feedback(place, feedback, alpha) for place in places)

    def forward(self, x: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """Translate images.

        Args:
            x: [B, inputs, H, W].
            features: feedback of the loop before, five tensors [B, F, h, w] from half the image's
                size down to a sixteenth; none in the first loop.

        Returns:
            [B, outputs, H, W] in -1 to 1.
        """
        skips: list[Tensor] = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        x = self.after(self._fed(0, self.before(x), features))
        for place, level in enumerate([*self.up, self.out], start=1):
            x = level(self._fed(place, torch.cat([x, skips.pop()], dim=1), features))
        return x

    def _fed(self, place: int, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Add the feedback that belongs to a place of the decoder, counted from the deepest."""
        if not features:
            return x
        fed: Tensor = self.feedback[place](x, features[-1 - place])
        return fed


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        HalvingConv2d(inputs, outputs), instance_norm(outputs), nn.ReLU(inplace=True)
    )


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        DoublingConv2d(inputs, outputs), instance_norm(outputs), nn.ReLU(inplace=True)
    )


def _reflected_conv(channels: int) -> tuple[nn.Module, nn.Module]:
    """A reflect-padded 3x3 convolution and instance norm."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)
    return conv, instance_norm(channels)

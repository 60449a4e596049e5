"""The discriminators: feature pyramids whose scores are tied by an inner product.

As in PanoGAN (Wu et al. 2022). D1 scores segmentations, D2 scores images, each together with its
condition. At each of five scales a discriminator has a `real` map and an embedding; the score of
its input is

    real + <embed_image, embed_seg>,

`embed_image` from D2 and `embed_seg` from D1. The partner of the scored embedding is that
of the true pair: a generated segmentation is scored against the true image, a generated image
against the true segmentation, a true pair against each other.

B batch, C channels, H rows, W columns, E embedding.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from smdt.models.gan.layers import HalvingConv2d, instance_norm

SCALES = 5


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Scores of one discriminator for B images at its scales 1/2, 1/4, 1/8, 1/16 and 1/16.

    Attributes:
        real: [B, 1, h, w] each.
        embedding: [B, E, h, w] each.
        features: [B, E, h, w] each, from which both come and which feedback uses.
    """

    real: list[Tensor]
    embedding: list[Tensor]
    features: list[Tensor]

    def rows(self, rows: slice) -> "DiscriminatorOutput":
        """Return the scores of some of the images."""
        return DiscriminatorOutput(
            real=[x[rows] for x in self.real],
            embedding=[x[rows] for x in self.embedding],
            features=[x[rows] for x in self.features],
        )


class PyramidDiscriminator(nn.Module):
    """Bottom-up convolutions, a top-down sum, one `real` and one `embed` head for all scales.

    Args:
        inputs: channels of the condition and of what is judged together.
        width: channels of the first level, of the features and of the embedding; the levels have
            1, 2, 4, 8 and 8 times as many, the laterals 2 times.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        levels: list[nn.Conv2d] = [
            HalvingConv2d(before, after)
            for before, after in zip([inputs, *widths[:-2]], widths[:-1], strict=True)
        ]
        levels.append(nn.Conv2d(widths[-2], widths[-1], 3, padding=1, bias=False))
        self.levels = nn.ModuleList(_normed(conv) for conv in levels)
        self.laterals = nn.ModuleList(_block(channels, 2 * width) for channels in widths)
        self.heads = nn.ModuleList(_block(2 * width, width) for _ in widths)
        self.real = nn.Conv2d(width, 1, 1)
        self.embed = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Judge condition and image [B, inputs, H, W], side by side in the channels.

        Returns:
            The fields of a `DiscriminatorOutput`, since ZeRO 3 finds tensors in lists only.
        """
        bottom_up = []
        for level in self.levels:
            x = level(x)
            bottom_up.append(x)
        sides = [lateral(x) for lateral, x in zip(self.laterals, bottom_up, strict=True)]
        top_down = [sides.pop()]
        while sides:
            side = sides.pop()
            top_down.insert(0, side + _upsampled(top_down[0], side))
        features = [head(x) for head, x in zip(self.heads, top_down, strict=True)]
        return [self.real(x) for x in features], [self.embed(x) for x in features], features


def tied_scores(judged: DiscriminatorOutput, partner: DiscriminatorOutput) -> list[Tensor]:
    """Return `real + <embedding, partner's embedding>` at each scale, [B, 1, h, w].

    Args:
        judged: of what is scored.
        partner: the other discriminator's, of the true pair.
    """
    return [
        real + (own * other).sum(dim=1, keepdim=True)
        for real, own, other in zip(judged.real, judged.embedding, partner.embedding, strict=True)
    ]


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    if x.shape == like.shape:  # the last two scales have one size
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return _normed(nn.Conv2d(inputs, outputs, 1, bias=False))


def _normed(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution with instance norm and leaky ReLU."""
    norm = instance_norm(conv.out_channels)
    return nn.Sequential(conv, norm, nn.LeakyReLU(0.2, inplace=True))

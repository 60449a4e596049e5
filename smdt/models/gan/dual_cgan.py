"""The dual conditional GAN: from a mapped aerial image to a ground segmentation and ground image.

`chain` is the paper's arrangement: G1 makes the segmentation S_g' of the mapped aerial image I_a,
G2 makes the ground image I_g' of both; D1 judges (I_a, S), D2 judges (S_g', I). `parallel` is the
one of the published code: one network with an image and a segmentation head, and both
discriminators see I_a as the condition.

B batch, C channels, H rows, W columns, F channels of feedback. All images are float in [-1, 1].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from smdt.models.gan.discriminator import (
    SCALES,
    DiscriminatorOutput,
    PyramidDiscriminator,
    tied_scores,
)
from smdt.models.gan.unet import UNet

COLOURS = 3


class DualCganConfig(BaseModel):
    """Arrangement and sizes of the four networks. The defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arrangement: Literal["chain", "parallel"] = "chain"
    """The paper's two generators in a row, or the published code's one with two heads."""
    g2_input: Literal["both", "segmentation"] = "both"
    """Input of G2 in the chain: S_g' and I_a, or S_g' alone as in the paper's figure."""
    generator_width: int = Field(64, ge=1)
    """Channels of a generator's first level; the next have 2, 4 and 8 times as many."""
    discriminator_width: int = Field(64, ge=1)
    """Channels of a discriminator's first level; the next have 2, 4, 8 and 8 times as many."""
    feedback_loops: int = Field(1, ge=1)
    """How often the generators run; from the second time on they see the discriminators' features
    of what they made before. 1 means no feedback."""
    alpha: float = Field(0.5, ge=0)
    """Weight of the feedback."""

    @property
    def feedback_channels(self) -> int:
        """F: the features of both discriminators, 0 without feedback."""
        return 2 * self.discriminator_width if self.feedback_loops > 1 else 0


class Generators(nn.Module):
    """G1 and G2, or the one network of the parallel arrangement."""

    def __init__(self, config: DualCganConfig) -> None:
        super().__init__()
        self._config = config
        width, feedback, alpha = config.generator_width, config.feedback_channels, config.alpha
        if config.arrangement == "parallel":
            self.both = UNet(COLOURS, 2 * COLOURS, width, feedback, alpha)
        else:
            inputs = 2 * COLOURS if config.g2_input == "both" else COLOURS
            self.to_segmentation = UNet(COLOURS, COLOURS, width, feedback, alpha)
            self.to_ground = UNet(inputs, COLOURS, width, feedback, alpha)

    def forward(self, aerial: Tensor, *features: Tensor) -> tuple[Tensor, Tensor]:
        """Generate segmentations and ground images.

        Args:
            aerial: mapped aerial images I_a [B, 3, H, W]; cast to the parameters' dtype.
            features: of the loop before, from `Discriminators.feedback`; none in the first loop.

        Returns:
            S_g' and I_g', float32 [B, 3, H, W] each. S_g' carries I_g's gradient to G1.
        """
        dtype = next(self.parameters()).dtype
        aerial = aerial.to(dtype)
        features = tuple(feature.to(dtype) for feature in features)
        if self._config.arrangement == "parallel":
            segmentation, ground = self.both(aerial, features).chunk(2, dim=1)
            return _full(segmentation), _full(ground)
        segmentation = self.to_segmentation(aerial, features)
        beside = (
            [segmentation] if self._config.g2_input == "segmentation" else [segmentation, aerial]
        )
        ground = self.to_ground(torch.cat(beside, dim=1), features)
        return _full(segmentation), _full(ground)


@dataclass(frozen=True)
class Scores:
    """Scores of true and generated pairs, five scales each: float32 [B, 1, h, w] logits."""

    true_segmentation: list[Tensor]
    true_ground: list[Tensor]
    generated_segmentation: list[Tensor]
    generated_ground: list[Tensor]

    @classmethod
    def of(cls, outputs: tuple[Tensor, ...]) -> "Scores":
        """Sort the outputs of `Discriminators`."""
        parts = [list(outputs[start : start + SCALES]) for start in range(0, 4 * SCALES, SCALES)]
        return cls(*parts)


class Discriminators(nn.Module):
    """D1 and D2, which score together."""

    def __init__(self, config: DualCganConfig) -> None:
        super().__init__()
        self._chain = config.arrangement == "chain"
        self.of_segmentation = PyramidDiscriminator(2 * COLOURS, config.discriminator_width)
        self.of_ground = PyramidDiscriminator(2 * COLOURS, config.discriminator_width)

    def forward(
        self,
        aerial: Tensor,
        segmentation: Tensor,
        ground: Tensor,
        generated_segmentation: Tensor,
        generated_ground: Tensor,
    ) -> tuple[Tensor, ...]:
        """Score the true and the generated pairs of a batch.

        Args:
            aerial: I_a, like the others [B, 3, H, W]; all are cast to the parameters' dtype.
            segmentation: S.
            ground: I.
            generated_segmentation: S_g'.
            generated_ground: I_g'.

        Returns:
            Twenty float32 tensors, which `Scores.of` sorts.
        """
        dtype = next(self.parameters()).dtype
        count = len(aerial)
        true, generated = slice(0, count), slice(count, 2 * count)
        # Instance norm knows no batch: true and generated pairs go through together.
        conditions = generated_segmentation if self._chain else aerial
        of_segmentation = DiscriminatorOutput(
            *self.of_segmentation(_pairs(aerial, segmentation, generated_segmentation).to(dtype))
        )
        of_ground = DiscriminatorOutput(
            *self.of_ground(_pairs(conditions, ground, generated_ground).to(dtype))
        )
        true_seg, true_ground = of_segmentation.rows(true), of_ground.rows(true)
        scores = (
            tied_scores(true_seg, true_ground),
            tied_scores(true_ground, true_seg),
            tied_scores(of_segmentation.rows(generated), true_ground),
            tied_scores(of_ground.rows(generated), true_seg),
        )
        return tuple(_full(score) for scales in scores for score in scales)

    @torch.no_grad()
    def feedback(
        self, aerial: Tensor, generated_segmentation: Tensor, generated_ground: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what the generators see of their own work: features of both, without a graph.

        Returns:
            Five tensors [B, F, h, w], from half the image's size down to a sixteenth.
        """
        dtype = next(self.parameters()).dtype
        condition = generated_segmentation if self._chain else aerial
        *_, seg = self.of_segmentation(torch.cat([aerial, generated_segmentation], dim=1).to(dtype))
        *_, ground = self.of_ground(torch.cat([condition, generated_ground], dim=1).to(dtype))
        return tuple(torch.cat(both, dim=1) for both in zip(ground, seg, strict=True))


def _full(x: Tensor) -> Tensor:
    """Widen what is narrower than fp32: losses are taken in full precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pairs(condition: Tensor, true: Tensor, generated: Tensor) -> Tensor:
    """True pairs, then generated ones, [2B, C, H, W]."""
    return torch.cat([condition.repeat(2, 1, 1, 1), torch.cat([true, generated])], dim=1)

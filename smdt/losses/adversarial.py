"""Losses of the alignment stage: some samples' shares, which add up to the mean of a global batch.

L samples, C channels, H rows and W columns of an image, h rows and w columns of a scale.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import softplus


class AlignmentLossConfig(BaseModel):
    """Weights of the alignment losses; the adversarial ones have weight 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    l1_segmentation: float = Field(default=100.0, ge=0)
    """Weight of the distance of S_g' from S, in palette colours."""
    l1_image: float = Field(default=100.0, ge=0)
    """Weight of the distance of I_g' from I."""


def local_adversarial_loss(scores: Sequence[Tensor], true: bool, global_batch: int) -> Tensor:
    """Some samples' share of a discriminator's binary cross-entropy, over all of its scales.

    Summed over samples it is the mean over the global batch, over scales and over a scale's pixels.

    Args:
        scores: logits [L, 1, h, w], one tensor a scale.
        true: whether the target is that of true pairs.
        global_batch: B.
    """
    sign = -1.0 if true else 1.0
    means = [softplus(sign * score).mean() * len(score) for score in scores]
    return torch.stack(means).mean() / global_batch


def local_l1_loss(
    generated: Tensor, target: Tensor, global_batch: int, known: Tensor | None = None
) -> Tensor:
    """Some samples' share of the mean absolute difference.

    The mean is taken over the known pixels of each sample, then over the samples: a sample with
    much void counts as much as any other, and no rank needs another one's count. A sample that is
    all void counts as zero.

    Args:
        generated: [L, C, H, W].
        target: the same.
        global_batch: B.
        known: bool [L, H, W], pixels that count; None is all.
    """
    difference_LHW = (generated - target).abs().mean(dim=1)
    if known is None:
        return difference_LHW.mean(dim=(1, 2)).sum() / global_batch
    counted_L = known.sum(dim=(1, 2)).clamp(min=1)
    return ((difference_LHW * known).sum(dim=(1, 2)) / counted_L).sum() / global_batch

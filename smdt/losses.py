"""Losses over a global batch, one rank's rows at a time: shares that add up to the batch's mean.

B global batch, D descriptor, L this rank's rows, C channels, H rows and W columns of an image.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import softplus


class LossConfig(BaseModel):
    """The loss of the retrieval stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["soft_margin"] = "soft_margin"
    """Soft-margin triplet loss with every other pair of the global batch as a negative."""
    gamma: float = Field(default=10.0, gt=0)
    """Sharpness of the margin."""


class AlignmentLossConfig(BaseModel):
    """The losses of the alignment stage beside the adversarial ones, which have weight 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    l1_segmentation: float = Field(default=100.0, ge=0)
    """Weight of the distance of S_g' from S, in palette colours."""
    l1_image: float = Field(default=100.0, ge=0)
    """Weight of the distance of I_g' from I."""


def soft_margin_rows(ground_BD: Tensor, aerial_BD: Tensor, rows: slice, gamma: float) -> Tensor:
    """This rank's share of the soft-margin triplet loss, both directions; memory is O(L x B).

    Summed over slices that partition the batch it is the loss of DESIGN section 6, the mean over
    both directions of `sum over i != j of softplus(gamma (d_ii - d_ij)) / (B (B - 1))` with
    d = 2 - 2 cos (Hu et al. 2018, section 4.2).

    Args:
        ground_BD: L2-normalised descriptors of all ranks' ground images.
        aerial_BD: those of their aerial images; row i of both is a pair.
        rows: the pairs that are queries here, without a step.
        gamma: sharpness of the margin.

    Raises:
        ValueError: the batch has a single pair, and so no negative.
    """
    batch = len(ground_BD)
    if batch < 2:
        raise ValueError("the soft-margin loss needs a global batch of at least 2 pairs")
    directions = (
        _margins(ground_BD[rows], aerial_BD, rows),
        _margins(aerial_BD[rows], ground_BD, rows),
    )
    total = torch.stack([softplus(gamma * margin_LB).sum() for margin_LB in directions]).sum()
    return total / (2 * batch * (batch - 1))


def _margins(query_LD: Tensor, gallery_BD: Tensor, rows: slice) -> Tensor:
    """d_ii - d_ij of the queries, [L, B]; minus infinity where j = i."""
    cosine_LB = query_LD @ gallery_BD.T
    true_L1 = torch.arange(len(gallery_BD), device=query_LD.device)[rows].unsqueeze(1)
    margin_LB = 2 * (cosine_LB - cosine_LB.gather(1, true_L1))
    return margin_LB.scatter(1, true_L1, -torch.inf)


def adversarial_share(scores: Sequence[Tensor], true: bool, global_batch: int) -> Tensor:
    """Some samples' share of a discriminator's binary cross-entropy, over all of its scales.

    Summed over samples it is the mean over the global batch, over scales and over a scale's pixels.

    Args:
        scores: logits [L, 1, h, w], one tensor a scale.
        true: whether these are to be taken for true pairs.
        global_batch: B.
    """
    sign = -1.0 if true else 1.0
    means = [softplus(sign * score).mean() * len(score) for score in scores]
    return torch.stack(means).mean() / global_batch


def l1_share(
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

"""Retrieval losses over the descriptors of a global batch, one rank's rows at a time.

B global batch, D descriptor, L this rank's rows.
"""

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

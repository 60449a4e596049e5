"""From the features of all places of an image to one vector.

B batch, N places, D width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["class_token", "mean", "gem"]

GEM_POWER = 3.0
GEM_SMALLEST = 1e-6


class Mean(nn.Module):
    """The mean over places."""

    def forward(self, features_BND: Tensor) -> Tensor:
        """Return [B, D]."""
        return features_BND.mean(dim=1)


class GeneralisedMean(nn.Module):
    """GeM (Radenovic et al. 2018): the mean of powers, its root; the power is learned.

    1 is the mean of what is positive, infinity the maximum. Negative features count as zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.full((1,), GEM_POWER))

    def forward(self, features_BND: Tensor) -> Tensor:
        """Return [B, D]; the powers are fp32 whatever the features are in."""
        power = self.power.float()
        positive_BND = features_BND.float().clamp(min=GEM_SMALLEST)
        return positive_BND.pow(power).mean(dim=1).pow(1 / power).to(features_BND.dtype)


def make_pool(pooling: Literal["mean", "gem"]) -> nn.Module:
    """Build a pool of features [B, N, D]."""
    return Mean() if pooling == "mean" else GeneralisedMean()

"""Random headings and mirror images, the same for both views of a pair.

Drawn from (seed, epoch, sample id) alone: a resumed run, or another number of ranks, draws
the same.

B batch, C channels, H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from smdt.geometry.view import turn


class AugmentConfig(BaseModel):
    """What is drawn anew for each pair in each epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: bool = False
    """Turn both panoramas by one heading, uniform over the circle."""
    mirror: bool = False
    """Mirror both panoramas, one time in two."""


@dataclass(frozen=True)
class Draw:
    """What was drawn for a batch.

    Attributes:
        clockwise_deg: [B] in [0, 360).
        mirrored: bool [B].
    """

    clockwise_deg: NDArray[np.float64]
    mirrored: NDArray[np.bool_]

    def apply(self, panoramas: Tensor) -> Tensor:
        """Turn, then mirror panoramas [B, C, H, W]."""
        turned = turn(panoramas, self.clockwise_deg)
        mirrored_B111 = torch.from_numpy(self.mirrored).to(panoramas.device).view(-1, 1, 1, 1)
        return torch.where(mirrored_B111, turned.flip(3), turned)


def draw(config: AugmentConfig, seeds: list[int]) -> Draw:
    """Draw from one seed a sample (pure).

    Args:
        config: what may be drawn.
        seeds: of the samples, from `smdt.data.randomness.sample_seed`.
    """
    numbers = np.array([np.random.default_rng(seed).random(2) for seed in seeds]).reshape(-1, 2)
    return Draw(
        clockwise_deg=360.0 * numbers[:, 0] * config.turn,
        mirrored=(numbers[:, 1] < 0.5) & config.mirror,
    )

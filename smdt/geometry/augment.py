"""Random headings and mirror images, the same for both views of a pair.

A panorama turns by rolling its columns, a raw tile by rotating: exact for quarter turns only; any
other angle would bring in corners outside the photograph.

Drawn from (seed, epoch, sample id) alone: a resumed run, or another number of ranks, draws
the same.

B batch, C channels, H rows, W columns, S side of a tile.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from smdt.geometry.view import turn

QUARTER_DEG = 90.0


class AugmentConfig(BaseModel):
    """Augmentation drawn for each pair in each epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: bool | Literal["quarters"] = False
    """Turn both views by one heading, uniform over the circle or over its four quarters."""
    mirror: bool = False
    """Mirror both views, one time in two."""


@dataclass(frozen=True)
class Draw:
    """The draws of a batch.

    Attributes:
        clockwise_deg: [B] in [0, 360).
        mirrored: bool [B].
    """

    clockwise_deg: NDArray[np.float64]
    mirrored: NDArray[np.bool_]

    @classmethod
    def turned(cls, clockwise_deg: float, count: int) -> Self:
        """Return the same turn for each of some samples, none mirrored."""
        return cls(np.full(count, clockwise_deg), np.zeros(count, bool))

    def apply(self, panoramas: Tensor) -> Tensor:
        """Turn, then mirror panoramas [B, C, H, W]."""
        turned = turn(panoramas, self.clockwise_deg)
        # About the middle column, which stays: with `flip` alone north would move by a column.
        return self._mirror(turned, turned.flip(3).roll(1, 3))

    def apply_to_tiles(self, tiles: Tensor) -> Tensor:
        """Turn and mirror tiles [B, C, S, S], north up, as `apply` does their panoramas.

        Quarter turns only: the heading that a panorama's centre looks to is up in its tile.
        """
        quarters, rest = np.divmod(self.clockwise_deg, QUARTER_DEG)
        assert not rest.any(), "the configuration allows raw tiles quarter turns only"
        # A tile turns the other way round: what was clockwise of north comes up.
        turned = torch.stack(
            [
                tile.rot90(int(count), dims=(1, 2))
                for tile, count in zip(tiles, quarters, strict=True)
            ]
        )
        return self._mirror(turned, turned.flip(3))

    def _mirror(self, images: Tensor, flipped: Tensor) -> Tensor:
        mirrored_B111 = torch.from_numpy(self.mirrored).to(images.device).view(-1, 1, 1, 1)
        return torch.where(mirrored_B111, flipped, images)


def even_turns(count: int) -> NDArray[np.float64]:
    """Return turns at even distances around the circle, the first is 0: degrees [count]."""
    return np.linspace(0.0, 360.0, count, endpoint=False, dtype=np.float64)


def draw(config: AugmentConfig, seeds: list[int]) -> Draw:
    """Draw from one seed a sample (pure).

    Args:
        config: what may be drawn.
        seeds: of the samples, from `smdt.data.randomness.sample_seed`.
    """
    numbers = np.array([np.random.default_rng(seed).random(2) for seed in seeds]).reshape(-1, 2)
    clockwise_deg = 360.0 * numbers[:, 0] * bool(config.turn)
    if config.turn == "quarters":
        clockwise_deg = QUARTER_DEG * (clockwise_deg // QUARTER_DEG)
    return Draw(
        clockwise_deg=clockwise_deg,
        mirrored=(numbers[:, 1] < 0.5) & config.mirror,
    )

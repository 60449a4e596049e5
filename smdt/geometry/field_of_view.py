"""Field of view and heading of ground images, and whether the towers get the heading.

A photo of a limited field of view is the middle of a panorama that was turned to where it looks;
the rest of the panorama is black. So every field of view has the same angle a pixel, and a tower
sees all of them: nothing is stretched, and no network is built for one width. With a known heading
the photo is then at its place relative to the aerial image, with north in the middle column;
without one it stays in the middle.

B batch, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from smdt.geometry.augment import AugmentConfig
from smdt.geometry.view import keep_field_of_view, turn

FieldOfView = Annotated[float, Field(gt=0, le=360)]
"""Degrees; 360 is the whole panorama."""


class RetrievalAugmentConfig(AugmentConfig):
    """Augmentation drawn for each pair, or for its ground image alone, in each epoch."""

    fov_deg: tuple[FieldOfView, FieldOfView] = (360.0, 360.0)
    """Narrowest and widest field of view of ground images, uniform between them."""
    unknown_heading: bool = False
    """Turn ground images by a random heading, independent of the aerial images."""

    @field_validator("fov_deg")
    @classmethod
    def _ascends(cls, fov_deg: tuple[float, float]) -> tuple[float, float]:
        if fov_deg[0] > fov_deg[1]:
            raise ValueError("fov_deg is the narrowest, then the widest field of view")
        return fov_deg


@dataclass(frozen=True)
class FieldOfViewCrop:
    """Headings and widths of the ground images of a batch.

    Attributes:
        clockwise_deg: [B], heading of the middle of what is seen, clockwise from north.
        fov_deg: [B], how much is seen.
        heading_known: whether the photo is at its heading.
    """

    clockwise_deg: NDArray[np.float64]
    fov_deg: NDArray[np.float64]
    heading_known: bool

    def apply(self, panoramas: Tensor) -> Tensor:
        """Show some of north-aligned panoramas [B, C, H, W], values 0 to 255."""
        if self.heading_known and (self.fov_deg == 360).all():
            return panoramas
        seen = keep_field_of_view(turn(panoramas, self.clockwise_deg), self.fov_deg)
        return turn(seen, -self.clockwise_deg) if self.heading_known else seen


def draw_field_of_view(
    fov_deg: tuple[float, float], unknown_heading: bool, seeds: list[int]
) -> FieldOfViewCrop:
    """Draw from one seed a sample (pure).

    Args:
        fov_deg: narrowest and widest field of view.
        unknown_heading: whether the towers do not get the heading.
        seeds: of the samples.
    """
    numbers = np.array([np.random.default_rng(seed).random(2) for seed in seeds]).reshape(-1, 2)
    narrowest, widest = fov_deg
    return FieldOfViewCrop(
        clockwise_deg=360.0 * numbers[:, 0],
        fov_deg=narrowest + (widest - narrowest) * numbers[:, 1],
        heading_known=not unknown_heading,
    )

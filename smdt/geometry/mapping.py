"""Unrolls an aerial image around its centre into the shape of a ground panorama (docs/mapping.md).

B batch, H rows and W columns of the panorama, S side of the aerial image.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from data_shards.base.errors import UserError
from smdt.geometry.radius import GroundCamera, mixed_radius, perspective_radius, polar_radius
from smdt.geometry.sampling import SamplingGrid, make_grid, sample, sub_positions

Projection = Literal["polar", "perspective", "mixed"]

CACHED_GRIDS = 32
"""Grids kept in memory: 2 MiB each at 128x512 without supersampling; a new one takes a few ms."""


class GeometryError(UserError, ValueError):
    """The camera's position does not follow from data or configuration."""

    exit_code = 2


class PanoramaConfig(BaseModel):
    """Size of a panorama, and height of its camera above the tile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    panorama_size: tuple[int, int] = (128, 512)
    """Rows and columns of both views' panoramas."""
    camera_height_m: float = Field(default=2.0, gt=0)
    """Height of the panorama's camera above the ground."""
    extent_m: float | None = Field(default=None, gt=0)
    """Side of a tile on the ground, where the data does not say it."""
    elevation_deg: tuple[float, float] | None = None
    """Elevation of a panorama's lower and upper edge, where the data does not say it."""
    supersample: int = Field(default=1, ge=1, le=8)
    """A pixel of a mapped image averages this number squared of samples; 1 is the published way."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if min(self.panorama_size) < 1:
            raise ValueError("geometry.panorama_size must be a positive height and width")
        if self.elevation_deg is not None:
            _check_elevation(self.elevation_deg)
        return self


class GeometryConfig(PanoramaConfig):
    """Options of the projection of aerial images to panoramas."""

    mapping: Projection = "mixed"
    """Polar (SAFA), perspective, or mixed: polar far away, perspective near the camera (SMDT)."""


@lru_cache(maxsize=CACHED_GRIDS)
def panorama_taps(
    mapping: Projection,
    size: tuple[int, int],
    side: int,
    view: GroundCamera | None,
    supersample: int,
    device: torch.device,
) -> SamplingGrid:
    """Return the sampling grid of a mapping; `view` is None for polar, which needs none."""
    height, width = size
    rows = sub_positions(height, supersample)
    if view is None:
        radius = polar_radius(rows, height, side)
    elif mapping == "perspective":
        radius = perspective_radius(rows, height, side, view)
    else:
        radius = mixed_radius(rows, height, side, view)
    return make_grid(radius, width, side, supersample, device)


class PanoramaProjection(nn.Module):
    """Aerial images to panoramas of one size, each by its own extent and elevation range."""

    def __init__(self, config: GeometryConfig, height: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.size = (height, width)

    @torch.no_grad()
    def forward(
        self,
        aerial: Sequence[Tensor] | Tensor,
        extent_m: NDArray[np.float64],
        elevation_deg: NDArray[np.float64],
    ) -> Tensor:
        """Map a batch on the device it is on.

        Args:
            aerial: B images uint8 [S, S, 3], north up; sizes may differ.
            extent_m: [B] side of each tile on the ground; NaN: what the configuration says.
            elevation_deg: [B, 2] lower and upper edge of each panorama; NaN: the configuration's.

        Returns:
            float32 [B, 3, H, W], channels last in memory, values 0 to 255; column W/2 looks north,
            outside is 0.

        Raises:
            GeometryError: an image is not square, or its extent or elevation range is unknown.
        """
        device = aerial[0].device
        height, width = self.size
        panoramas = torch.empty(len(aerial), height * width, 3, device=device)
        # one for the batch: memory that is new for each image costs more than the arithmetic
        scratch = torch.empty(max(len(image) for image in aerial) ** 2, 3, device=device)
        for image, panorama, extent, (bottom, top) in zip(
            aerial, panoramas, extent_m, elevation_deg, strict=True
        ):
            taps = self._taps(image, float(extent), (float(bottom), float(top)))
            panorama.copy_(sample(image, taps, scratch))
        return panoramas.view(-1, height, width, 3).permute(0, 3, 1, 2)

    def _taps(
        self, image: Tensor, extent_m: float, elevation_deg: tuple[float, float]
    ) -> SamplingGrid:
        rows, side, _ = image.shape
        if rows != side:
            raise GeometryError(f"an aerial image of {rows}x{side} pixels is not square: cut it")
        config = self.config
        view = None if config.mapping == "polar" else self._view(extent_m, elevation_deg)
        return panorama_taps(
            config.mapping, self.size, side, view, config.supersample, image.device
        )

    def _view(self, extent_m: float, elevation_deg: tuple[float, float]) -> GroundCamera:
        extent = self.config.extent_m if np.isnan(extent_m) else extent_m
        elevation = self.config.elevation_deg if np.isnan(elevation_deg).any() else elevation_deg
        if extent is None:
            raise self._unknown("extent_m")
        if elevation is None:
            raise self._unknown("elevation_deg")
        if extent <= 0:
            raise GeometryError(f"a tile's extent of {extent} m is not positive: correct extent_m")
        _check_elevation(elevation)
        return GroundCamera(self.config.camera_height_m, extent, elevation)

    def _unknown(self, field: str) -> GeometryError:
        return GeometryError(
            f"the {self.config.mapping} mapping needs {field}, which the shards do not say: "
            f"set geometry.{field}, or choose the polar mapping"
        )


def _check_elevation(elevation_deg: tuple[float, float]) -> None:
    bottom, top = elevation_deg
    if not -90 <= bottom < top <= 90:
        raise GeometryError(
            f"a panorama's elevation from {bottom} to {top} degrees is not a range: "
            "give its lower, then its upper edge, inside -90 to 90"
        )

"""Pasting a perspective photo into a panorama: the direction of each of its pixels.

H rows, W columns of the panorama; h rows, w columns of the photo.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smdt.geometry.view import resize

Lens = Literal["panorama", "rectilinear"]
"""`panorama`: columns are degrees, as in a panorama or a piece of one. `rectilinear`: straight
lines stay straight, as in what cameras and phones take."""

Elevation = tuple[float, float]
"""Degrees above the horizon of a bottom and of a top edge."""


def paste_into_panorama(
    photo: Tensor, fov_deg: float, lens: Lens, size: tuple[int, int], elevation_deg: Elevation
) -> Tensor:
    """Return a panorama with a photo in its middle; what the photo does not show is black.

    Args:
        photo: uint8 [h, w, 3]; a rectilinear one is taken level, the horizon in its middle row, and
            a panoramic one shows the panorama's elevations.
        fov_deg: horizontal, above 0, at most 360, below 180 for a rectilinear one.
        lens: how it was taken.
        size: H and W.
        elevation_deg: of the panorama.

    Returns:
        float32 [1, 3, H, W], values 0 to 255.
    """
    if lens == "rectilinear":
        return _from_rectilinear(photo, math.radians(fov_deg), size, elevation_deg)
    height, width = size
    kept = max(round(fov_deg * width / 360), 1)
    first = width // 2 - kept // 2
    panorama = torch.zeros(1, 3, height, width)
    panorama[..., first : first + kept] = resize(photo.unsqueeze(0), (height, kept)).float()
    return panorama


def crop_photo(panorama: Tensor, azimuth_deg: float, fov_deg: float) -> Tensor:
    """Cut a photo out of a panorama: what `paste_into_panorama` puts back, in the middle.

    Args:
        panorama: [H, W, C], all round.
        azimuth_deg: of the photo's middle, clockwise of the panorama's; to the nearest column.
        fov_deg: horizontal, above 0, at most 360.

    Returns:
        [H, w, C].
    """
    width = panorama.shape[1]
    kept = max(round(fov_deg * width / 360), 1)
    first = width // 2 - kept // 2 + round(azimuth_deg * width / 360)
    return panorama[:, (first + torch.arange(kept)) % width]


def _from_rectilinear(
    photo: Tensor, fov_rad: float, size: tuple[int, int], elevation_deg: Elevation
) -> Tensor:
    height, width = size
    # As many pixels to a degree in the middle as the panorama has, so that none is skipped.
    across = max(round(math.tan(fov_rad / 2) * width / math.pi), 1)
    down = max(round(across * photo.shape[0] / photo.shape[1]), 1)
    small = resize(photo.unsqueeze(0), (down, across)).float()
    low, high = (math.radians(each) for each in elevation_deg)
    azimuth_W = (torch.arange(width) - width // 2) * (2 * math.pi / width)
    elevation_H = high - (torch.arange(height) + 0.5) * ((high - low) / height)
    ahead_W = azimuth_W.abs() < math.pi / 2
    # The plane of the photo is one unit ahead; half its width there is what the field of view says.
    half_width = math.tan(fov_rad / 2)
    x_HW = azimuth_W.tan().expand(height, width)
    y_HW = elevation_H.tan().unsqueeze(1) / azimuth_W.cos()
    # In `grid_sample`'s coordinates the photo reaches from -1 to 1.
    grid = torch.stack([x_HW / half_width, -y_HW / (half_width * down / across)], dim=-1)
    seen_HW = ahead_W & (grid.abs() <= 1).all(dim=-1)
    sampled = F.grid_sample(
        small, grid.unsqueeze(0), mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled * seen_HW

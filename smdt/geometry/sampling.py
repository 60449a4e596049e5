"""Bilinear sampling of an aerial image along a radius profile.

The mapping of an image is linear, with a handful of taps for each panorama pixel: a sparse matrix.
It is kept as indices and weights of a fixed count of taps, and `embedding_bag` is its product with
the pixels: one pass over the output, on any device.

P panorama pixels (row by row), T taps of a pixel.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SamplingGrid:
    """A sampling grid: for each panorama pixel the aerial pixels to weigh.

    Flat, with the offsets of the pixels: `embedding_bag` would compute them again in each call,
    which takes a sixth of its time.
    """

    index: Tensor
    """int32 [P * T], row-major pixel of the aerial image."""
    weight: Tensor
    """float32 [P * T], 0 outside the image."""
    begin: Tensor
    """int32 [P + 1], where the taps of each pixel begin, and the end."""


def sub_positions(count: int, supersample: int) -> NDArray[np.float64]:
    """Positions of `supersample` samples in each of `count` rows, centred on the row, ascending."""
    return (np.arange(count * supersample) + 0.5) / supersample - 0.5


def make_grid(
    radius: NDArray[np.float64], width: int, side: int, supersample: int, device: torch.device
) -> SamplingGrid:
    """Place the bilinear taps of a panorama.

    Args:
        radius: pixels, for every sub-row, so `supersample` times the rows; infinite: no ground.
        width: columns of the panorama, the first one looking south, the middle one north.
        side: rows and columns of the aerial image.
        supersample: a pixel averages this number squared of samples.
        device: where the taps will be used.
    """
    # twice the side from the centre is outside in every direction, and unlike infinity a number
    radius_R1 = torch.from_numpy(np.minimum(radius, 2 * side)).to(device).unsqueeze(1)
    columns = torch.from_numpy(sub_positions(width, supersample)).to(device)
    azimuth_C = columns * (2 * math.pi / width)
    across = _axis_taps(side / 2 - radius_R1 * azimuth_C.sin(), side)
    down = _axis_taps(side / 2 + radius_R1 * azimuth_C.cos(), side)
    corners = [(row, column) for row in down for column in across]
    index_RCT = torch.stack([row[0] * side + column[0] for row, column in corners], dim=-1)
    weight_RCT = torch.stack([row[1] * column[1] for row, column in corners], dim=-1)
    index_PT = _by_pixel(index_RCT, supersample)
    weight_PT = _by_pixel(weight_RCT, supersample) / supersample**2
    count = index_PT.shape[1]
    begin = torch.arange(0, index_PT.numel() + 1, count, dtype=torch.int32, device=device)
    return SamplingGrid(index_PT.flatten(), weight_PT.flatten(), begin)


def _axis_taps(position_RC: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """Split positions along one axis into two neighbours, int32, and their weights, float32."""
    floor_RC = position_RC.floor()
    fraction_RC = (position_RC - floor_RC).float()
    first_RC = floor_RC.int()
    taps = []
    for neighbour_RC, weight_RC in ((first_RC, 1 - fraction_RC), (first_RC + 1, fraction_RC)):
        clamped_RC = neighbour_RC.clamp(0, side - 1)
        taps.append((clamped_RC, weight_RC * (clamped_RC == neighbour_RC)))
    return taps


def _by_pixel(values_RCT: Tensor, supersample: int) -> Tensor:
    """Collect what belongs to a pixel: sub-rows x sub-columns x 4 to pixels x taps."""
    rows, columns = (size // supersample for size in values_RCT.shape[:2])
    blocks = values_RCT.reshape(rows, supersample, columns, supersample, 4)
    return blocks.transpose(1, 2).reshape(rows * columns, -1)


def sample(aerial: Tensor, taps: SamplingGrid, scratch: Tensor) -> Tensor:
    """Weigh the taps of an aerial image.

    Args:
        aerial: uint8 [S, S, 3].
        taps: of a mapping for this side.
        scratch: float32, at least [S * S, 3], overwritten.

    Returns:
        float32 [P, 3], values 0 to 255.
    """
    side = len(aerial)
    pixels = scratch[: side * side].copy_(aerial.reshape(-1, 3))
    return F.embedding_bag(
        taps.index,
        pixels,
        taps.begin,
        mode="sum",
        per_sample_weights=taps.weight,
        include_last_offset=True,
    )

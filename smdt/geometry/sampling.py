"""Bilinear sampling of an aerial image along a radius profile.

The mapping of an image is linear, with a handful of taps for each panorama pixel: a sparse matrix.
It is kept as indices and weights of a fixed count of taps, and `embedding_bag` is its product with
the pixels, on any device. Its rows are in the order of the aerial image, not of the panorama, and
cut into bands: an image as floats is larger than a core's cache, a band of it is nearer to one. A
second, cheaper pass puts the results in their place.

P panorama pixels, T taps of a pixel, N panorama pixels of a band, S side of the aerial image.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BANDS = 4
"""Parts of equal work that an image is mapped in, from top to bottom."""


@dataclass(frozen=True)
class Band:
    """The taps of the panorama pixels that look into one part of the aerial image."""

    first: int
    """Row-major number of the first aerial pixel that is weighed."""
    end: int
    """Number after the last one."""
    index: Tensor
    """int32 [N * T], which pixel, counted from `first`."""
    weight: Tensor
    """float32 [N * T], 0 for what lies outside the image."""
    starts: Tensor
    """int32 [N + 1], where each panorama pixel's taps start."""


@dataclass(frozen=True)
class Taps:
    """A sampling grid: for each panorama pixel the aerial pixels to weigh."""

    bands: tuple[Band, ...]
    """From the top of the image to its bottom."""
    place: Tensor
    """int32 [P], where each panorama pixel, row by row, is in the bands' order."""


def sub_positions(count: int, supersample: int) -> NDArray[np.float64]:
    """Positions of `supersample` samples in each of `count` rows, centred on the row, ascending."""
    return (np.arange(count * supersample) + 0.5) / supersample - 0.5


def make_taps(
    radius: NDArray[np.float64], width: int, side: int, supersample: int, device: torch.device
) -> Taps:
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
    order_P = (index_PT[:, 0] // side).argsort(stable=True)
    place_P = torch.empty_like(order_P, dtype=torch.int32)
    place_P[order_P] = torch.arange(len(order_P), dtype=torch.int32, device=device)
    bands = tuple(
        # index_select: a quarter of the time of index_PT[order_N]
        _band(index_PT.index_select(0, order_N), weight_PT.index_select(0, order_N))
        for order_N in order_P.tensor_split(BANDS)
        if len(order_N)
    )
    return Taps(bands, place_P)


def _band(index_NT: Tensor, weight_NT: Tensor) -> Band:
    first, last = (int(end) for end in index_NT.aminmax())
    count, taps = index_NT.shape
    starts = torch.arange(count + 1, dtype=torch.int32, device=index_NT.device) * taps
    return Band(first, last + 1, (index_NT - first).flatten(), weight_NT.flatten(), starts)


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


def sample(aerial: Tensor, taps: Taps, panorama: Tensor) -> None:
    """Weigh the taps of an aerial image.

    Args:
        aerial: uint8 [S, S, 3].
        taps: of a mapping for this side.
        panorama: float32 [3, P], contiguous: the result, values 0 to 255.
    """
    pixels = aerial.reshape(-1, 3)
    weighed = torch.cat(
        [
            F.embedding_bag(
                band.index,
                pixels[band.first : band.end].float(),
                band.starts,
                per_sample_weights=band.weight,
                mode="sum",
                include_last_offset=True,
            )
            for band in taps.bands
        ]
    )
    # channel by channel, since torch selects from one dimension faster than from two
    for values, target in zip(weighed.unbind(1), panorama, strict=True):
        torch.index_select(values, 0, taps.place, out=target)

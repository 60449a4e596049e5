"""Transforms of a view on the training device: size, heading, field of view, scale.

B batch, C channels, H rows, W columns.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def resize(images: Sequence[Tensor] | Tensor, size: tuple[int, int]) -> Tensor:
    """Resize with an anti-aliased bilinear filter.

    Args:
        images: B images uint8 [H, W, 3]; sizes may differ.
        size: rows and columns of the result.

    Returns:
        uint8 [B, 3, *size], channels last in memory, rounded to the nearest level, on the images'
        device.
    """
    resized = torch.empty(len(images), *size, 3, dtype=torch.uint8, device=images[0].device)
    resized = resized.permute(0, 3, 1, 2)
    for image, target in zip(images, resized, strict=True):
        source = image.permute(2, 0, 1).unsqueeze(0)  # channels last in memory: torch's fast path
        if source.device.type != "cpu":
            source = source.float()  # torch has the uint8 kernel for the CPU only
        if source.shape[-2:] != size:
            source = F.interpolate(source, size, mode="bilinear", antialias=True)
        target.copy_(source[0].round() if source.is_floating_point() else source[0])
    return resized


def resize_classes(maps: Sequence[Tensor] | Tensor, size: tuple[int, int]) -> Tensor:
    """Resize class maps by taking the nearest pixel: ids are never mixed.

    Args:
        maps: B class maps uint8 [H, W, 1]; sizes may differ.
        size: rows and columns of the result.

    Returns:
        uint8 [B, *size], on the maps' device.
    """
    resized = torch.empty(len(maps), *size, dtype=torch.uint8, device=maps[0].device)
    for classes, target in zip(maps, resized, strict=True):
        source = classes.permute(2, 0, 1).unsqueeze(0)
        target.copy_(F.interpolate(source, size, mode="nearest-exact")[0, 0])
    return resized


def turn(panoramas: Tensor, clockwise_deg: NDArray[np.float64]) -> Tensor:
    """Turn panoramas, so that each one's centre column looks further clockwise.

    A panorama whose centre looks to heading h has north in its centre after a turn by -h. The turn
    is made in whole columns, the nearest number of them: at most 180 / W degrees off.

    Args:
        panoramas: [B, C, H, W], all round.
        clockwise_deg: [B] degrees, any sign.
    """
    width = panoramas.shape[-1]
    shift = np.rint(np.asarray(clockwise_deg) * width / 360).astype(np.int64) % width
    first_B1 = torch.from_numpy(shift).to(panoramas.device).unsqueeze(1)
    columns_BW = (first_B1 + torch.arange(width, device=panoramas.device)) % width
    return panoramas.gather(3, columns_BW[:, None, None, :].expand_as(panoramas))


def roll_to_north(
    panoramas: Sequence[Tensor] | Tensor, heading_deg: NDArray[np.float64]
) -> Sequence[Tensor] | Tensor:
    """Turn panoramas so that their middle column looks north, by whole columns of their own.

    Args:
        panoramas: B images [H, W, C], all round; sizes may differ.
        heading_deg: [B], of their middle column now; unknown (NaN) is treated as north.

    Returns:
        The same, at most 180 / W degrees off: one tensor where it was one.
    """
    return _rolled(panoramas, heading_deg, 1)


def roll_to_heading(
    panoramas: Sequence[Tensor] | Tensor, heading_deg: NDArray[np.float64]
) -> Sequence[Tensor] | Tensor:
    """Undo `roll_to_north`, exactly: the middle column of the result looks to `heading_deg`."""
    return _rolled(panoramas, heading_deg, -1)


def _rolled(
    panoramas: Sequence[Tensor] | Tensor, heading_deg: NDArray[np.float64], sign: int
) -> Sequence[Tensor] | Tensor:
    known = np.nan_to_num(heading_deg)
    if not known.any():
        return panoramas
    rolled = [
        image.roll(sign * columns_of(float(heading), image.shape[1]), dims=1)
        for image, heading in zip(panoramas, known, strict=True)
    ]
    return torch.stack(rolled) if isinstance(panoramas, Tensor) else rolled


def columns_of(heading_deg: float, width: int) -> int:
    """Return how many columns a heading is to the right of north: the nearest number of them.

    Half a column is rounded up, and a thousandth of one is treated as rounding: a panorama that is
    rolled by n columns is n columns further, whatever its heading is.
    """
    return math.floor(round(heading_deg * width / 360, 3) + 0.5)


def keep_field_of_view(panoramas: Tensor, fov_deg: NDArray[np.float64]) -> Tensor:
    """Keep the middle columns of panoramas and set the others to black.

    The number of columns is rounded to the nearest, at least one; column W/2 is the middle one of
    what is kept (rounded down).

    Args:
        panoramas: [B, C, H, W], values 0 to 255.
        fov_deg: [B], above 0 and at most 360.
    """
    width = panoramas.shape[-1]
    kept = np.maximum(np.rint(np.asarray(fov_deg) * width / 360).astype(np.int64), 1)
    first = width // 2 - kept // 2
    columns = np.arange(width)
    seen = (columns >= first[:, None]) & (columns < (first + kept)[:, None])  # [B, W]
    return panoramas * torch.from_numpy(seen).to(panoramas.device)[:, None, None, :]


def normalise(
    images: Tensor,
    mean: Sequence[float] = (127.5, 127.5, 127.5),
    std: Sequence[float] = (127.5, 127.5, 127.5),
) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
        images: [B, 3, H, W], values 0 to 255, any dtype.
        mean: red, green, blue, 0 to 255. The defaults scale to -1 to 1.
        std: the same.

    Returns:
        float32 [B, 3, H, W].
    """
    mean_C11, std_C11 = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return (images.float() - mean_C11) / std_C11


def to_levels(images: Tensor) -> Tensor:
    """Undo `normalise`'s defaults: -1 to 1 becomes uint8, whole levels as a file holds them."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

"""The unlearned baseline: nearest mean colours of a coarse grid over both panoramas.

What a model must beat, and the bench's test of honesty (docs/world.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

AZIMUTHS = 8
ELEVATIONS = 4


def colour_band_descriptors(
    images: Tensor, azimuths: int = AZIMUTHS, elevations: int = ELEVATIONS
) -> Tensor:
    """Mean colours of equal parts of panoramas.

    Args:
        images: [N, 3, H, W], values 0 to 255, any dtype.
        azimuths: parts across; a width that does not divide gives parts that share columns.
        elevations: parts down; they may share rows in the same way.

    Returns:
        float64 [N, 3 * elevations * azimuths], values 0 to 255.
    """
    return F.adaptive_avg_pool2d(images.double(), (elevations, azimuths)).flatten(1)


def as_query(ground: Tensor) -> Tensor:
    """Return descriptors [N, 97] whose inner product with `as_gallery` orders as the distance.

    |q - g|^2 = |q|^2 + 2 - 2 (q . g + 1 - |g|^2 / 2): nearest in the Euclidean distance is the
    largest inner product of these. The 1 keeps a black panorama from being a zero descriptor.

    Args:
        ground: [N, 96] of `colour_band_descriptors`.
    """
    return F.pad(ground, (0, 1), value=1.0)


def as_gallery(aerial: Tensor) -> Tensor:
    """Return gallery descriptors [N, 97] of colours [N, 96], for the queries of `as_query`."""
    return torch.cat([aerial, 1 - aerial.square().sum(dim=1, keepdim=True) / 2], dim=1)

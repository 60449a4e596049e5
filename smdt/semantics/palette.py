"""Class maps as images in a fixed palette, and back.

B batch, H rows, W columns, K classes.
"""

import torch
from torch import Tensor

from data_shards.format.classes import CLASS_COUNT, PALETTE, VOID


def to_colours(classes: Tensor) -> Tensor:
    """Colour class maps; void is black.

    Args:
        classes: class ids uint8 [B, H, W].

    Returns:
        float32 [B, 3, H, W] in [-1, 1].
    """
    colours_BHW3 = _scaled(PALETTE.shape[0], classes.device)[classes.long()]
    return colours_BHW3.permute(0, 3, 1, 2).contiguous()


def to_classes(colours: Tensor) -> Tensor:
    """Read each pixel as the class of the nearest palette colour (Euclidean); never void.

    Args:
        colours: [B, 3, H, W] in [-1, 1], any float type.

    Returns:
        class ids uint8 [B, H, W]; of equally near classes the first.
    """
    palette_K3 = _scaled(CLASS_COUNT, colours.device)
    # |x - c|^2 = |x|^2 + |c|^2 - 2 x.c, and |x|^2 is the same for all classes.
    inner_BKHW = torch.einsum("bchw,kc->bkhw", colours.float(), palette_K3)
    distance_BKHW = palette_K3.square().sum(1).view(1, -1, 1, 1) - 2 * inner_BKHW
    return distance_BKHW.argmin(dim=1).to(torch.uint8)


def known(classes: Tensor) -> Tensor:
    """Return where class maps uint8 [B, H, W] are not void: bool, same shape."""
    return classes != VOID


def _scaled(count: int, device: torch.device) -> Tensor:
    """The first `count` colours of the palette, float32 [count, 3] in [-1, 1]."""
    return torch.from_numpy(PALETTE[:count].copy()).to(device).float() / 127.5 - 1

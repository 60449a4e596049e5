"""Ground panoramas and class maps of a batch with north in the middle: what every stage sees.

A shard holds both as they were photographed; the middle column looks to the sample's heading. They
are turned at their own size, before anything else happens to them, so that equal panoramas give
equal pixels whatever their heading is.

H rows, W columns.
"""

from typing import Literal

from torch import Tensor

from smdt.data.batch import Batch
from smdt.data.pipeline import Images
from smdt.geometry.view import resize, resize_classes, roll_to_north

EVERYTHING = slice(None)


def panoramas(batch: Batch, view: Literal["ground", "seg"], rows: slice = EVERYTHING) -> Images:
    """Return some rows at their own size, north in the middle: uint8 [H, W, C] each."""
    return roll_to_north(batch.images[view][rows], batch.heading_deg[rows])


def ground_images(batch: Batch, rows: slice, size: tuple[int, int]) -> Tensor:
    """Return the ground images of some rows at one size: uint8 [rows, 3, *size]."""
    return resize(panoramas(batch, "ground", rows), size)


def class_maps(batch: Batch, rows: slice, size: tuple[int, int]) -> Tensor:
    """Return the class maps of some rows at one size: class ids uint8 [rows, *size]."""
    return resize_classes(panoramas(batch, "seg", rows), size)

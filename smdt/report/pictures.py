"""Pictures of a split's samples, small enough to stand inside a page."""

import base64
import io
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_shards.classes import PALETTE
from smdt.data.reader import Reader
from smdt.data.split import Split
from smdt.geometry.mapping import GeometryConfig, PanoramaMapping
from smdt.telemetry.metrics import TrainingMetrics

LARGEST = 512
"""Longer side of a picture, pixels."""
QUALITY = 85


class Pictures:
    """Reads images of a split for a page.

    Args:
        split: where the samples are.
        geometry: how aerial images are unrolled.
    """

    def __init__(self, split: Split, geometry: GeometryConfig) -> None:
        self._split = split
        self._reader = Reader(split, TrainingMetrics("report", "report", 0), Event())
        self._mapping = PanoramaMapping(geometry, *geometry.panorama_size)

    def name(self, sample_id: int) -> str:
        """Return what a sample was called where it came from."""
        return self._split.source_id(sample_id)

    def source(self, sample_id: int, view: str) -> str:
        """Return an image of a sample as a `data:` URI."""
        return data_uri(self._image(sample_id, view))

    def mapped(self, sample_id: int) -> str:
        """Return a sample's aerial image, unrolled to a panorama, as a `data:` URI."""
        return tensor_uri(self.panorama(sample_id)[0])

    def class_map(self, sample_id: int) -> str:
        """Return a sample's class map in the palette's colours as a `data:` URI."""
        ids = np.array(self._image(sample_id, "seg"))[..., 0]
        return data_uri(Image.fromarray(PALETTE[ids]))

    def panorama(self, sample_id: int) -> Tensor:
        """Return a sample's aerial image unrolled: float32 [1, 3, H, W], values 0 to 255."""
        aerial = torch.from_numpy(np.array(self._image(sample_id, "aerial")))
        row = slice(sample_id, sample_id + 1)
        columns = (self._split.column(f"elevation_{end}")[row] for end in ("min", "max"))
        unrolled: Tensor = self._mapping(
            [aerial], self._split.column("extent_m")[row], np.stack(list(columns), axis=1)
        )
        return unrolled

    def _image(self, sample_id: int, view: str) -> Image.Image:
        return Image.open(io.BytesIO(self._reader.read(sample_id, view))).convert("RGB")


def tensor_uri(image: Tensor) -> str:
    """Return an image [3, H, W] with values 0 to 255 as a `data:` URI."""
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).round().to(torch.uint8).cpu().numpy()
    return data_uri(Image.fromarray(pixels))


def data_uri(image: Image.Image) -> str:
    """Return `image`, at most `LARGEST` pixels long, as a `data:` URI of a JPEG."""
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

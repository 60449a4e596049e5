"""Pictures of a split's samples, small enough to embed in a page.

Panoramas and class maps have north in the middle, as the images that a model made of a tile.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_shards.base.errors import DataError
from data_shards.format.classes import PALETTE
from data_shards.format.images import decode
from data_shards.format.sample import RejectedSample
from smdt.data.batch import Batch, BatchDecoder, EncodedSample
from smdt.data.order import DataState
from smdt.data.reader import DamagedPart, Reader
from smdt.data.split import Split
from smdt.geometry.view import roll_to_north
from smdt.telemetry.metrics import TrainingMetrics

LARGEST = 512
"""Longer side of a picture, pixels."""
QUALITY = 85
PANORAMAS = ("ground", "seg")


class Pictures:
    """Reads images of a split for a page.

    Args:
        split: where the samples are.

    Raises:
        DataError: in its methods: a sample on the page is damaged.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._reader = Reader(split, TrainingMetrics("report", "report", 0), Event())

    def name(self, sample_id: int) -> str:
        """Return what a sample was called where it came from."""
        return self._split.source_id(sample_id)

    def source(self, sample_id: int, view: str) -> str:
        """Return an image of a sample as a `data:` URI."""
        return data_uri(self._image(sample_id, view).convert("RGB"))

    def class_map(self, sample_id: int) -> str:
        """Return a sample's class map in the palette's colours as a `data:` URI."""
        return data_uri(Image.fromarray(PALETTE[np.array(self._image(sample_id, "seg"))]))

    def batches(self, sample_ids: Sequence[int], view: str) -> Iterator[Batch]:
        """Yield each sample as a batch of one view, as a stage sees it."""
        device = torch.device("cpu")
        maker = BatchDecoder(self._split, (view,), 1, device, threads=1)
        state = DataState(self._split.manifest_hash, 0, 0, 0)
        for sample_id in sample_ids:
            yield maker.make([EncodedSample.read(self._reader, sample_id, (view,))], 0, state)

    def _image(self, sample_id: int, view: str) -> Image.Image:
        try:
            data = self._reader.read(sample_id, view)
            image = decode(f"{view} of {self._split.key(sample_id)}", data)
        except (DamagedPart, RejectedSample) as damage:
            detail = damage.detail.rstrip(".")
            raise DataError(f"{detail}: run `smdt shards verify {self._split.root}`.") from None
        if view not in PANORAMAS:
            return image
        heading_deg = self._split.column("heading")[sample_id : sample_id + 1]
        (turned,) = roll_to_north([torch.from_numpy(np.array(image))], heading_deg)
        return Image.fromarray(turned.numpy())


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

"""Aerial images turned into ground images: what `smdt align` makes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_shards.build.finalize import sha256
from data_shards.format.images import (
    Encoding,
    PreparedImage,
    encode_jpeg,
    jpeg_library,
    prepare_photo,
)
from data_shards.format.sample import JSON
from smdt.data.batch import Batch
from smdt.inference.annotated_shard import Annotator
from smdt.stages.retrieval.aligned import FrozenAlignment
from smdt.stages.weights import resolve_checkpoint
from smdt.training.checkpoints import checkpoint

ENCODING = Encoding(quality=95, chroma="4:4:4")
"""High quality, since a generated image is small."""


class AlignmentAnnotator(Annotator):
    """Makes `aligned.jpg` from the aerial image.

    Args:
        alignment: what makes the images.
        model: what it is, for the manifest.
    """

    part = "aligned"
    views = ("aerial",)

    def __init__(self, alignment: FrozenAlignment, model: dict[str, JSON]) -> None:
        self._alignment = alignment
        self._model = model

    @property
    def model(self) -> dict[str, JSON]:
        """Return how the images are made: arrangement, mapping, size, encoder, hashes."""
        return self._model

    def __call__(self, batch: Batch) -> Sequence[PreparedImage]:
        """Align each aerial image by itself: its bits must not depend on its neighbours."""
        return [
            _encoded(self._alignment(batch, slice(row, row + 1))[0])
            for row in range(len(batch.sample_ids))
        ]


def open_alignment(trained: Path, device: torch.device) -> AlignmentAnnotator:
    """Return what aligns with a run or a checkpoint of the alignment stage.

    Raises:
        InputError: it is neither.
    """
    del device  # that of a batch decides
    folder = resolve_checkpoint(trained)
    alignment = FrozenAlignment(folder)
    config = alignment.config
    files = (checkpoint.CONFIG, checkpoint.WEIGHTS)
    model: dict[str, JSON] = {
        "arrangement": config.model.arrangement,
        "mapping": config.geometry.mapping,
        "image_size": list(config.geometry.panorama_size),
        "encoder": f"{jpeg_library()}, quality {ENCODING.quality}, {ENCODING.chroma}",
        "sha256": {name: sha256(folder / name) for name in files},
    }
    return AlignmentAnnotator(alignment, model)


def _encoded(image: Tensor) -> PreparedImage:
    """Return a JPEG of an image uint8 [3, H, W], and its part of a shard's pixel statistics."""
    data = encode_jpeg(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), ENCODING)
    return prepare_photo("aligned.jpg", data, None, ENCODING)

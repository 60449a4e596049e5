"""Class maps of ground panoramas: what `smdt segment` makes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_shards.base.errors import InputError
from data_shards.build.finalize import sha256
from data_shards.format.images import PreparedImage, encode_png
from data_shards.format.sample import JSON
from smdt.data.batch import Batch
from smdt.geometry.view import resize, roll_to_heading
from smdt.inference.annotated_shard import Annotator
from smdt.models.segmenter import CONFIG, Segmenter, class_map, open_folder, used_files
from smdt.stages.panoramas import panoramas
from smdt.stages.segmentation.stage import SegmentationStage
from smdt.stages.trained import load_stage
from smdt.stages.weights import resolve_checkpoint
from smdt.training.checkpoints import checkpoint


class SegmentationAnnotator(Annotator):
    """Makes `seg.png` from the ground panorama.

    Args:
        segmenter: on `device`.
        image_size: rows and columns that it sees panoramas in; None: their own size.
        model: what it is, for the manifest.
        device: of the network.
    """

    part = "seg"
    views = ("ground",)

    def __init__(
        self,
        segmenter: Segmenter,
        image_size: tuple[int, int] | None,
        model: dict[str, JSON],
        device: torch.device,
    ) -> None:
        self._segmenter = segmenter.to(device).eval()
        self._image_size = image_size
        self._model = model

    @property
    def model(self) -> dict[str, JSON]:
        """Architecture, size of its images, hash of every file."""
        return self._model

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Sequence[PreparedImage]:
        """Segment each panorama in the stage's orientation; the class map has the shard's.

        The class map is as large as the panorama.
        """
        ground = panoramas(batch, "ground")
        maps = [
            class_map(logits, (image.shape[0], image.shape[1])).unsqueeze(2)
            for image, logits in zip(ground, self._logits(ground), strict=True)
        ]
        return [_encoded(classes[..., 0]) for classes in roll_to_heading(maps, batch.heading_deg)]

    def _logits(self, ground: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """[K, h, w] of each panorama."""
        if self._image_size is not None:
            batches = [resize(ground, self._image_size)]
        elif isinstance(ground, Tensor):
            batches = [ground.permute(0, 3, 1, 2)]
        else:
            batches = [image.permute(2, 0, 1).unsqueeze(0) for image in ground]
        return [logits for images in batches for logits in self._segmenter(images)[0]]


def open_segmentation(trained: Path, device: torch.device) -> SegmentationAnnotator:
    """Open a segmenter: a run, one of our checkpoints, or a Hugging Face folder.

    Raises:
        InputError: it is not one of them, or of another stage.
    """
    if (trained / CONFIG).is_file():
        segmenter = open_folder(trained)
        model = _described(segmenter, used_files(trained), None)
        return SegmentationAnnotator(segmenter, None, model, device)
    _, stage = load_stage(trained)
    if not isinstance(stage, SegmentationStage):
        raise InputError(
            f"{trained} is of stage {stage.name!r}: name a checkpoint of the segmentation stage"
        )
    size = stage.image_size
    model = _described(stage.segmenter, [resolve_checkpoint(trained) / checkpoint.WEIGHTS], size)
    return SegmentationAnnotator(stage.segmenter, size, model, device)


def _described(
    segmenter: Segmenter, files: Sequence[Path], size: tuple[int, int] | None
) -> dict[str, JSON]:
    return {
        "architecture": str(segmenter.network.config.model_type),
        "image_size": None if size is None else list(size),
        "sha256": {path.name: sha256(path) for path in files},
    }


def _encoded(classes: Tensor) -> PreparedImage:
    pixels: np.ndarray = classes.cpu().numpy()
    return PreparedImage(encode_png(Image.fromarray(pixels)), "png", *pixels.shape)

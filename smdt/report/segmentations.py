"""Predicted class maps of held-out panoramas, next to the ground truth."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from data_shards.format.classes import PALETTE
from smdt.models.segmenter import class_map
from smdt.report.pictures import Pictures, data_uri
from smdt.stages.panoramas import EVERYTHING, ground_images
from smdt.stages.segmentation.stage import SegmentationStage
from smdt.stages.trained import load_stage


@torch.no_grad()
def segmentations(pictures: Pictures, run: Path, sample_ids: Sequence[int]) -> list[dict[str, str]]:
    """Return the pictures of some samples' class maps, made with the newest checkpoint.

    Args:
        pictures: of the split.
        run: the run folder, with a checkpoint.
        sample_ids: which samples.
    """
    _, stage = load_stage(run)
    assert isinstance(stage, SegmentationStage)
    stage.segmenter.eval()
    rows = []
    batches = pictures.batches(sample_ids, "ground")
    for sample_id, batch in zip(sample_ids, batches, strict=True):
        (logits,) = stage.segmenter(ground_images(batch, EVERYTHING, stage.image_size))
        predicted = class_map(logits[0], stage.image_size)
        rows.append(
            {
                "name": pictures.name(sample_id),
                "ground": pictures.source(sample_id, "ground"),
                "predicted": data_uri(Image.fromarray(PALETTE[predicted.numpy()])),
                "true": pictures.class_map(sample_id),
            }
        )
    return rows

"""Generated images of held-out aerial images, next to the ground truth."""

from collections.abc import Sequence
from pathlib import Path

from smdt.geometry.view import normalise, to_levels
from smdt.report.pictures import Pictures, tensor_uri
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.mapped import mapped
from smdt.stages.trained import load_stage


def alignments(pictures: Pictures, run: Path, sample_ids: Sequence[int]) -> list[dict[str, str]]:
    """Return the pictures of some samples' alignment, made with the newest checkpoint.

    Args:
        pictures: of the split.
        run: the run folder, with a checkpoint.
        sample_ids: which samples.
    """
    _, stage = load_stage(run)
    assert isinstance(stage, AlignmentStage)
    rows = []
    batches = pictures.batches(sample_ids, "aerial")
    for sample_id, batch in zip(sample_ids, batches, strict=True):
        aerial = mapped(stage.mapping, batch, slice(0, 1))
        segmentation, ground = stage.align(normalise(aerial))
        rows.append(
            {
                "name": pictures.name(sample_id),
                "aerial": pictures.source(sample_id, "aerial"),
                "mapped": tensor_uri(aerial[0]),
                "generated_segmentation": tensor_uri(to_levels(segmentation[0])),
                "generated_ground": tensor_uri(to_levels(ground[0])),
                "segmentation": pictures.class_map(sample_id),
                "ground": pictures.source(sample_id, "ground"),
            }
        )
    return rows

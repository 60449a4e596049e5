"""What a run's generators make of held-out aerial images, beside what is true."""

from collections.abc import Sequence
from pathlib import Path

from smdt.geometry.view import normalise
from smdt.report.pictures import Pictures, tensor_uri
from smdt.stages.alignment import AlignmentStage
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
    for sample_id in sample_ids:
        segmentation, ground = stage.align(normalise(pictures.panorama(sample_id)))
        rows.append(
            {
                "name": pictures.name(sample_id),
                "aerial": pictures.source(sample_id, "aerial"),
                "mapped": pictures.mapped(sample_id),
                "generated_segmentation": tensor_uri((segmentation[0] + 1) * 127.5),
                "generated_ground": tensor_uri((ground[0] + 1) * 127.5),
                "segmentation": pictures.class_map(sample_id),
                "ground": pictures.source(sample_id, "ground"),
            }
        )
    return rows

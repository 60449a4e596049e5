"""Which stages there are, and what each is made of."""

from collections.abc import Mapping

from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.references import alignment_references
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.base_config import Config
from smdt.stages.retrieval.aerial import aerial_view
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.references import retrieval_references
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.segmentation.config import SegmentationConfig
from smdt.stages.segmentation.stage import SegmentationStage
from smdt.training.loop.stage import Stage

STAGES: Mapping[str, type[Stage]] = {
    stage.name: stage for stage in (RetrievalStage, SegmentationStage, AlignmentStage)
}


def make_stage(config: Config) -> Stage:
    """Return the stage that a configuration names, with fresh weights."""
    match config:
        case RetrievalConfig():
            return RetrievalStage(config)
        case SegmentationConfig():
            return SegmentationStage(config)
        case AlignmentConfig():
            return AlignmentStage(config)
    raise AssertionError(f"no stage takes a {type(config).__name__}")


def training_views(config: Config) -> tuple[str, ...]:
    """Return the views that a run's training batches hold."""
    if not isinstance(config, RetrievalConfig):
        return STAGES[config.stage].views
    views = ("ground", aerial_view(config))
    return (*views, "seg") if config.semantics.needs_classes else views


def references(config: Config, shards: str, split: str) -> dict[str, dict[str, float]]:
    """Measure on a held-out split what a run's scores have to beat.

    Returns:
        Scores by name of the reference; nothing for the segmentation stage.
    """
    match config:
        case RetrievalConfig():
            return retrieval_references(config, shards, split)
        case AlignmentConfig():
            return alignment_references(config, shards, split)
    return {}

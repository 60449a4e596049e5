"""What each stage of training does in one optimisation step."""

from collections.abc import Mapping

from smdt.config import AlignmentConfig, Config, RetrievalConfig, SegmentationConfig
from smdt.stages.aerial import aerial_view
from smdt.stages.alignment import AlignmentStage
from smdt.stages.retrieval import RetrievalStage
from smdt.stages.segmentation import SegmentationStage
from smdt.training.stage import Stage

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

"""What each stage of training does in one optimisation step."""

from collections.abc import Mapping

from smdt.config import Config
from smdt.stages.retrieval import RetrievalStage
from smdt.training.stage import Stage

STAGES: Mapping[str, type[RetrievalStage]] = {RetrievalStage.name: RetrievalStage}


def make_stage(config: Config) -> Stage:
    """Return the stage that a configuration names, with fresh weights."""
    return STAGES[config.stage](config)


def training_views(config: Config) -> tuple[str, ...]:
    """Return the views that a run's training batches hold."""
    return STAGES[config.stage].training_views(config)

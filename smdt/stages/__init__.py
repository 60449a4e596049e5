"""What each stage of training does in one optimisation step."""

from smdt.config import Config
from smdt.stages.retrieval import RetrievalStage
from smdt.training.stage import Stage


def make_stage(config: Config) -> Stage:
    """Return the stage that a configuration names, with fresh weights."""
    return {"retrieval": RetrievalStage}[config.stage](config)

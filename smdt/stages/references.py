"""What a score is worth: chance, unlearned baselines, and the model before training."""

import torch

from smdt.config import AlignmentConfig, Config, RetrievalConfig
from smdt.data.loader import EvaluationLoader
from smdt.data.split import Split
from smdt.evaluation.baseline import baseline_ranks, colour_band_descriptors
from smdt.evaluation.recall import chance, recalls
from smdt.geometry.aerial import AlignmentSourceConfig
from smdt.stages import make_stage
from smdt.stages.alignment_references import alignment_references
from smdt.stages.retrieval import RetrievalStage
from smdt.stages.trained import evaluate_stage

Recalls = dict[str, float]
Scores = dict[str, float]


def references(config: Config, shards: str, split: str) -> dict[str, Scores]:
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


def retrieval_references(config: RetrievalConfig, shards: str, split: str) -> dict[str, Recalls]:
    """Measure the recall of chance, of no learning, and of the towers before training."""
    held_out = Split.open(shards, split, config.data.cache)
    torch.manual_seed(config.run.seed)
    untrained = evaluate_stage(config, make_stage(config), shards, split)
    return {
        "the model before training": dict(untrained.scores),
        "nearest mean colours": unlearned(config, held_out),
        "chance": chance(len(held_out)),
    }


def unlearned(config: RetrievalConfig, split: Split) -> Recalls:
    """Recalls of the nearest mean colours of the polar image, which learn nothing."""
    polar = {"aerial": "polar", "alignment": AlignmentSourceConfig()}
    stage = RetrievalStage(config.model_copy(update=polar))
    loader = EvaluationLoader(
        split,
        views=stage.views,
        batch=config.evaluation.batch,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )
    pairs = [stage.images(batch, slice(0, len(batch.sample_ids))) for batch in loader]
    ground, aerial = (
        torch.cat([colour_band_descriptors(pair[side]) for pair in pairs]) for side in (0, 1)
    )
    return recalls(baseline_ranks(ground, aerial).numpy(), len(aerial))

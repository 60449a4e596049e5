"""What a score is worth: chance, unlearned baselines, and the model before training."""

import torch

from smdt import config as configuration
from smdt.config import AlignmentConfig, RetrievalConfig
from smdt.data.loader import EvaluationLoader
from smdt.data.split import Split
from smdt.evaluation.baseline import baseline_ranks, colour_band_descriptors
from smdt.evaluation.recall import chance, recalls
from smdt.stages import make_stage
from smdt.stages.alignment_references import alignment_references
from smdt.stages.retrieval import RetrievalStage
from smdt.stages.trained import evaluate_stage
from smdt.training.run_folder import RunFolder, write_json

Recalls = dict[str, float]
Scores = dict[str, float]


def write_references(run: RunFolder) -> dict[str, Scores]:
    """Measure the references on a run's held-out split and write `references.json`.

    Returns:
        Scores by name of the reference; nothing for the segmentation stage.
    """
    config = configuration.load(run.config)
    references: dict[str, Scores] = {}
    if isinstance(config, RetrievalConfig):
        references = retrieval_references(config)
    elif isinstance(config, AlignmentConfig):
        references = alignment_references(config)
    write_json(run.references, references)
    return references


def retrieval_references(config: RetrievalConfig) -> dict[str, Recalls]:
    """Measure on a run's held-out split what a recall has to beat."""
    split = Split.open(config.data.shards, config.evaluation.split, config.data.cache)
    torch.manual_seed(config.run.seed)
    untrained = evaluate_stage(config, make_stage(config), str(split.root), split.name)
    return {
        "the model before training": dict(untrained.scores),
        "nearest mean colours": unlearned(config, split),
        "chance": chance(len(split)),
    }


def unlearned(config: RetrievalConfig, split: Split) -> Recalls:
    """Recalls of the nearest mean colours of the polar image, which learn nothing."""
    geometry = config.geometry.model_copy(update={"mapping": "polar"})
    stage = RetrievalStage(config.model_copy(update={"geometry": geometry}))
    loader = EvaluationLoader(
        split,
        views=stage.views,
        batch=config.evaluation.batch,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )
    pairs = [stage.panoramas(batch, slice(0, len(batch.sample_ids))) for batch in loader]
    ground, aerial = (
        torch.cat([colour_band_descriptors(pair[side]) for pair in pairs]) for side in (0, 1)
    )
    return recalls(baseline_ranks(ground, aerial).numpy(), len(aerial))

"""Scores to compare a retrieval with: chance, an unlearned baseline, the model before training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smdt.data.batch import Batch
from smdt.evaluation.baseline import as_gallery, as_query, colour_band_descriptors
from smdt.evaluation.recall import chance
from smdt.geometry.aerial import AlignmentSourceConfig
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.training.loop.stage import Evaluation

Recalls = dict[str, float]


def retrieval_references(config: RetrievalConfig, shards: str, split: str) -> dict[str, Recalls]:
    """Measure the recall of chance, of no learning, and of the towers before training."""
    torch.manual_seed(config.run.seed)
    untrained = evaluate_stage(config, RetrievalStage(config), shards, split)
    return {
        "the model before training": dict(untrained.scores),
        "nearest mean colours": dict(unlearned(config, shards, split).scores),
        "chance": chance(int(str(untrained.details["gallery_size"]))),
    }


def unlearned(config: RetrievalConfig, shards: str, split: str) -> Evaluation:
    """Evaluate the nearest mean colours of the polar image, which learn nothing."""
    polar = {"aerial": "polar", "alignment": AlignmentSourceConfig()}
    config = config.model_copy(update=polar)
    return evaluate_stage(config, MeanColours(config), shards, split)


class MeanColours(RetrievalStage):
    """Retrieval by mean colours in place of towers."""

    def embed(self, batch: Batch | None, views: Sequence[str]) -> list[Tensor]:
        """Return mean colours, by view so that the nearest has the largest inner product."""
        described = {self.views[0]: as_query, self.views[1]: as_gallery}
        images = [
            torch.zeros(0, 3, 1, 1) if batch is None else self.seen(batch, view) for view in views
        ]
        return [
            described[view](colour_band_descriptors(each))
            for view, each in zip(views, images, strict=True)
        ]

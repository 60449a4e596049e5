"""What the scores of an alignment are worth: images and class maps that nothing was learned for."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data_shards.classes import CLASS_COUNT
from smdt.config import AlignmentConfig
from smdt.data.loader import EvaluationLoader
from smdt.data.split import Split
from smdt.evaluation.alignment import AlignmentScores
from smdt.stages.alignment import AlignmentStage, Views
from smdt.stages.trained import evaluate_stage

IMAGE_SCORES = ("SSIM", "PSNR", "SD")


def alignment_references(config: AlignmentConfig) -> dict[str, dict[str, float]]:
    """Measure on a run's held-out split what a generator has to beat.

    Returns:
        Scores by name of the reference: the generators before training, the mapped aerial image
        taken for the ground image, the mean ground image of the training split, and its most
        common class of each pixel.
    """
    torch.manual_seed(config.run.seed)
    stage = AlignmentStage(config)
    mean, classes = averages(_views(stage, config, config.data.split))
    mapped, constant = (
        AlignmentScores(config.geometry.panorama_size, torch.device("cpu")) for _ in range(2)
    )
    for views in _views(stage, config, config.evaluation.split):
        predicted = classes.expand_as(views.classes)
        mapped.update(views.aerial, views.ground, predicted, views.classes)
        constant.update(mean.expand_as(views.ground), views.ground, predicted, views.classes)
    of_mapped, of_constant = mapped.compute()[0], constant.compute()[0]
    untrained = evaluate_stage(config, stage, config.data.shards, config.evaluation.split)
    return {
        "the model before training": dict(untrained.scores),
        "mapped aerial image": {name: of_mapped[name] for name in IMAGE_SCORES},
        "mean training image": {name: of_constant[name] for name in IMAGE_SCORES},
        "most common class of each pixel": {"mIoU": of_constant["mIoU"]},
    }


def averages(batches: Iterator[Views]) -> tuple[Tensor, Tensor]:
    """Return the mean ground image [3, H, W] in [-1, 1] and the most common classes uint8 [H, W].

    Void is no class; where a pixel is void in every sample, and of equally common ones, the class
    with the smallest id is taken.
    """
    total, samples = torch.zeros(()), 0
    counts_KHW = torch.zeros((), dtype=torch.int64)
    for views in batches:
        total = total + views.ground.double().sum(dim=0)
        samples += len(views.ground)
        counts_KHW = counts_KHW + torch.stack(
            [(views.classes == label).sum(dim=0) for label in range(CLASS_COUNT)]
        )
    return (total / samples).float(), counts_KHW.argmax(dim=0).to(torch.uint8)


def _views(stage: AlignmentStage, config: AlignmentConfig, split: str) -> Iterator[Views]:
    """Yield every batch of a split, as it is, in this process alone."""
    loader = EvaluationLoader(
        Split.open(config.data.shards, split, config.data.cache),
        views=stage.views,
        batch=config.evaluation.batch,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )
    for batch in loader:
        yield stage.inputs(batch, slice(0, len(batch.sample_ids)))

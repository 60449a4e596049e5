"""Baselines of an alignment's scores: images and class maps without learning."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from data_shards.format.classes import CLASS_COUNT
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.evaluation.alignment import AlignmentScores
from smdt.geometry.view import normalise
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.panoramas import EVERYTHING, class_maps, ground_images

IMAGE_SCORES = ("SSIM", "PSNR", "SD")


def alignment_references(
    config: AlignmentConfig, shards: str, split: str
) -> dict[str, dict[str, float]]:
    """Measure on a held-out split what a generator has to beat.

    Args:
        config: of a run, which says what it was trained on.
        shards: of the held-out split; its class maps may be others than the run's.
        split: its name.

    Returns:
        Scores by name of the reference: the generators before training, the mapped aerial image
        as the ground image, the mean ground image of the training split, and its most
        common class of each pixel.
    """
    torch.manual_seed(config.run.seed)
    stage = AlignmentStage(config)
    size = config.geometry.panorama_size
    mean, classes = averages(
        (normalise(ground_images(batch, EVERYTHING, size)), class_maps(batch, EVERYTHING, size))
        for batch in _batches(config, config.data.shards, config.data.split, ("ground", "seg"))
    )
    mapped, constant = (AlignmentScores(size, torch.device("cpu")) for _ in range(2))
    for batch in _batches(config, shards, split, stage.views):
        views = stage.inputs(batch, slice(0, len(batch.sample_ids)))
        predicted = classes.expand_as(views.classes)
        mapped.update(views.aerial, views.ground, predicted, views.classes)
        constant.update(mean.expand_as(views.ground), views.ground, predicted, views.classes)
    of_mapped, of_constant = mapped.compute()[0], constant.compute()[0]
    untrained = evaluate_stage(config, stage, shards, split)
    return {
        "the model before training": dict(untrained.scores),
        "mapped aerial image": {name: of_mapped[name] for name in IMAGE_SCORES},
        "mean training image": {name: of_constant[name] for name in IMAGE_SCORES},
        "most common class of each pixel": {"mIoU": of_constant["mIoU"]},
    }


def averages(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the mean ground image [3, H, W] in [-1, 1] and the most common classes uint8 [H, W].

    Void is not a class. For a pixel that is void in every sample, and of equally common classes,
    the class with the smallest id is returned.

    Args:
        batches: ground images [B, 3, H, W] in [-1, 1] and class ids uint8 [B, H, W].
    """
    total, samples = torch.zeros(()), 0
    counts_KHW = torch.zeros((), dtype=torch.int64)
    for ground, classes in batches:
        total = total + ground.double().sum(dim=0)
        samples += len(ground)
        counts_KHW = counts_KHW + torch.stack(
            [(classes == label).sum(dim=0) for label in range(CLASS_COUNT)]
        )
    return (total / samples).float(), counts_KHW.argmax(dim=0).to(torch.uint8)


def _batches(
    config: AlignmentConfig, shards: str, split: str, views: Sequence[str]
) -> EvaluationLoader:
    """Return the batches of a split, all in this process."""
    return EvaluationLoader(
        Split.open(shards, split, config.data.cache),
        views=views,
        batch=config.evaluation.batch,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )

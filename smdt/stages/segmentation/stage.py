"""Segmentation: panoramas to class maps, trained on shards that have labels.

The loss is the mean cross-entropy over all labelled pixels of the global batch; void is not
labelled. A chunk's share is its pixels' sum over the count of them all, so the step is the same
function of the global batch for every number of ranks and chunks.

B samples of this rank's share, K classes, H rows, W columns.
"""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.format.classes import CLASS_COUNT, VOID
from smdt.data.loader import Batch
from smdt.data.randomness import chunk_seed, sample_seed
from smdt.evaluation.iou import class_iou, confusion, mean_iou
from smdt.geometry.augment import draw
from smdt.models.segmenter import class_map, make_segmenter
from smdt.semantics.labels import CLASSES
from smdt.stages.evaluation import missing_samples, open_evaluation_split
from smdt.stages.panoramas import EVERYTHING, class_maps, ground_images, panoramas
from smdt.stages.segmentation.config import SegmentationConfig
from smdt.training.deepspeed.engine import Engine
from smdt.training.loop.stage import Evaluation, EvaluationData, Stage, StepContext, equal_slices
from smdt.training.loop.utilization import forward_flops

ENGINE = "segmenter"


class SegmentationStage(Stage):
    """Ground panorama to class map."""

    name = "segmentation"
    views = ("ground", "seg")

    def __init__(self, config: SegmentationConfig) -> None:
        self._config = config
        self.image_size = config.model.image_size
        self.segmenter = make_segmenter(config.model)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return the one network."""
        return {ENGINE: self.segmenter}

    def flops_per_sample(self) -> float:
        """Count the network, forward and backward."""
        self.segmenter.eval()
        blank = torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)
        return 3.0 * forward_flops(lambda: self.segmenter(blank))

    def augmented(self, batch: Batch, rows: slice, seed: int) -> tuple[Tensor, Tensor]:
        """Return panoramas and class maps, turned and mirrored alike as drawn in this epoch.

        Returns:
            uint8 [rows, 3, H, W] and class ids uint8 [rows, H, W].
        """
        size = self.image_size
        seeds = [sample_seed(seed, batch.epoch, int(i)) for i in batch.sample_ids[rows]]
        drawn = draw(self._config.augment, seeds)
        classes = class_maps(batch, rows, size).unsqueeze(1)
        ground = ground_images(batch, rows, size)
        return drawn.apply(ground), drawn.apply(classes).squeeze(1)

    def step(
        self, engines: Mapping[str, Engine], batch: Batch, context: StepContext
    ) -> Mapping[str, Tensor]:
        """Make one step."""
        engine = engines[ENGINE]
        engine.module.train()
        rows = equal_slices(len(batch.sample_ids), context.chunks)
        chunks = [self.augmented(batch, part, context.seed) for part in rows]
        labelled = torch.stack([(classes != VOID).sum() for _, classes in chunks]).sum()
        dist.all_reduce(labelled)
        loss = torch.zeros((), device=context.device)
        for chunk, (ground, classes) in enumerate(chunks):
            torch.manual_seed(chunk_seed(context.seed, context.step, context.rank, chunk))
            (logits,) = engine.forward(ground)
            total = F.cross_entropy(logits, classes.long(), ignore_index=VOID, reduction="sum")
            share = total / labelled.clamp(min=1)
            engine.backward(share)
            loss += share.detach()
        engine.step(context.rate_factor)
        return {"loss": loss}

    @torch.no_grad()
    def evaluate(self, context: StepContext, data: EvaluationData) -> Evaluation:
        """Compare predicted class maps with the split's, at the size of the split's."""
        split, loader = open_evaluation_split(self.views, context, data)
        self.segmenter.eval()
        size = self.image_size
        counts = torch.zeros(CLASS_COUNT, CLASS_COUNT, dtype=torch.int64, device=context.device)
        batches = samples = 0
        for batch in loader:
            (logits,) = self.segmenter(ground_images(batch, EVERYTHING, size))
            for true, of_image in zip(panoramas(batch, "seg"), logits, strict=True):
                predicted = class_map(of_image, (true.shape[0], true.shape[1]))
                counts += confusion(predicted, true[..., 0])
            batches, samples = batches + 1, samples + len(batch.sample_ids)
        # Under ZeRO 3 a forward is a collective: ranks with fewer batches join in empty-handed.
        blank = torch.zeros(1, 3, *size, dtype=torch.uint8, device=context.device)
        for _ in range(loader.longest - batches):
            self.segmenter(blank)
        seen = torch.tensor(samples, device=context.device)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(seen)
        missing = missing_samples(split, int(seen), data.max_missing)
        details = {
            "split": data.split,
            "shards": str(data.shards),
            "samples": int(seen),
            "missing": missing,
            "confusion": counts.tolist(),
        }
        return Evaluation(data.split, scores_of(counts), details)


def scores_of(confusion_KK: Tensor) -> dict[str, float]:
    """Return the mean IoU and that of each class that is true or predicted anywhere, 0 to 1."""
    of_classes = zip(CLASSES, class_iou(confusion_KK).tolist(), strict=True)
    present = {f"IoU {name}": iou for name, iou in of_classes if not math.isnan(iou)}
    return {"mIoU": mean_iou(confusion_KK), **present}

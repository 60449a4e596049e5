"""Scores of generated ground images and segmentations, over batches and ranks.

B batch, C channels, H rows, W columns.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.format.classes import CLASS_COUNT
from smdt.evaluation.images import ImageQuality
from smdt.evaluation.iou import confusion, mean_iou
from smdt.geometry.view import to_levels


class AlignmentScores:
    """Likeness to the real images, agreement with the true classes, variety of what is generated.

    SSIM comes first: it is what the best checkpoint is chosen by.

    Args:
        size: rows and columns of the images.
        device: of the batches.
        panogan_compat: as `ImageQuality`.
    """

    def __init__(
        self, size: tuple[int, int], device: torch.device, panogan_compat: bool = False
    ) -> None:
        self._quality = ImageQuality(panogan_compat)
        self._device = device
        self._counts = torch.zeros(CLASS_COUNT, CLASS_COUNT, dtype=torch.int64, device=device)
        self._moments = torch.zeros(2, 3, *size, dtype=torch.float64, device=device)
        self._samples = torch.zeros((), dtype=torch.float64, device=device)

    def update(
        self, generated: Tensor, real: Tensor, predicted_classes: Tensor, classes: Tensor
    ) -> None:
        """Add a batch.

        Args:
            generated: [B, 3, H, W] in [-1, 1].
            real: the same.
            predicted_classes: class ids uint8 [B, H, W].
            classes: the true ones, with void.
        """
        self._quality.update(to_levels(generated), to_levels(real))
        self._counts += confusion(predicted_classes, classes)
        values = to_levels(generated).double() / 255
        self._moments += torch.stack([values.sum(0), values.square().sum(0)])
        self._samples += len(generated)

    def compute(self) -> tuple[dict[str, float], int]:
        """Return the scores and how many samples they are of; all ranks call it and get the same.

        `SSIM`, `PSNR`, `SD` (both dB), `mIoU`, and `deviation`: the standard deviation of a pixel
        over the generated images, 0 to 1, root mean square over pixels. A generator that has
        collapsed makes one image of everything, and its deviation is zero.
        """
        scores = self._quality.compute(self._device)
        counts, moments, samples = map(_summed, (self._counts, self._moments, self._samples))
        mean, square = moments / samples
        variance = (square - mean**2).clamp(min=0).mean()
        scores |= {"mIoU": mean_iou(counts), "deviation": float(variance.sqrt())}
        return scores, int(samples)


def _summed(own: Tensor) -> Tensor:
    """The sum over ranks; `own` stays what it is."""
    own = own.clone()
    if dist.is_initialized():
        dist.all_reduce(own)
    return own

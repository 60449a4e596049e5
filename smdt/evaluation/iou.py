"""Agreement of class maps: intersection over union.

B batch, H rows, W columns, K classes.
"""

import torch
from torch import Tensor

from data_shards.format.classes import CLASS_COUNT, VOID


def confusion(predicted: Tensor, true: Tensor) -> Tensor:
    """Count pixels by true and predicted class; void of the truth is left out.

    Args:
        predicted: class ids uint8 [B, H, W], never void.
        true: the same, with void.

    Returns:
        int64 [K, K]: row true, column predicted.
    """
    counted = true != VOID
    pairs = true[counted].long() * CLASS_COUNT + predicted[counted].long()
    return torch.bincount(pairs, minlength=CLASS_COUNT**2).view(CLASS_COUNT, CLASS_COUNT)


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, float64 [K]; NaN for a class that is nowhere."""
    hits = counts.diagonal().double()
    return hits / (counts.sum(0) + counts.sum(1) - counts.diagonal())


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes that occur in the truth or the prediction."""
    return float(class_iou(counts).nanmean())

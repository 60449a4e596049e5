"""The retrieval losses of a whole batch, one line of the definition after the other.

B pairs, D descriptor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = 10.0
SMOOTHING = 0.1


def soft_margin(ground_BD: Tensor, aerial_BD: Tensor) -> Tensor:
    """Soft-margin triplet loss in plain loops, float64."""
    count = len(ground_BD)
    distance = 2 - 2 * ground_BD.double() @ aerial_BD.double().T
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            if i != j:
                total = total + F.softplus(GAMMA * (distance[i, i] - distance[i, j]))
                total = total + F.softplus(GAMMA * (distance[i, i] - distance[j, i]))
    return total / (2 * count * (count - 1))


def info_nce(ground_BD: Tensor, aerial_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE by torch's own cross-entropy, float64."""
    logits = scale.double() * (ground_BD.double() @ aerial_BD.double().T)
    true = torch.arange(len(logits))
    ground_to_aerial = F.cross_entropy(logits, true, label_smoothing=SMOOTHING)
    return (ground_to_aerial + F.cross_entropy(logits.T, true, label_smoothing=SMOOTHING)) / 2


PLAIN_LOSSES = {"soft_margin": soft_margin, "info_nce": info_nce}
"""By their name in a configuration."""

"""Dropout whose random bits are cheap on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 4
"""16-bit numbers in one draw of the generator."""
LEVELS = 1 << 16


class Dropout(nn.Module):
    """Drop units in training, each with a probability, and scale the others up.

    torch's own draws a number for each unit, which takes as long on a CPU as a tenth of the
    Transformer's products in bf16. Here four units share one 64-bit draw of the same generator; the
    probability is therefore rounded to 1/65536, and the scale is exact for what it is rounded to.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self._dropped_levels = round(probability * LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Drop units of a tensor of any shape."""
        if not self.training or self._dropped_levels == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.probability)
        kept = self._kept(x.numel()).view_as(x)
        scale = LEVELS / (LEVELS - self._dropped_levels)
        return x * kept.to(x.dtype).mul_(scale)

    def _kept(self, count: int) -> Tensor:
        """Draw which of `count` units stay: bool [count]."""
        draws = torch.empty(-(-count // LANES), dtype=torch.int64)
        draws.random_(torch.iinfo(torch.int64).min, None)  # all 64 bits
        uniform = draws.view(torch.int16)[:count]
        return uniform >= self._dropped_levels + torch.iinfo(torch.int16).min

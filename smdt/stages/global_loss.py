"""One contrastive loss over the descriptors of all ranks, and its gradient for each of them.

Every rank takes its rows of the loss, so that memory is O(b x B), and the ranks add up what their
rows say of everybody's descriptors.

B pairs of the global batch, b of this rank, D descriptor, S places of a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from smdt.losses import (
    InfoNceConfig,
    LossConfig,
    SoftMarginConfig,
    Wrong,
    info_nce_rows,
    soft_margin_rows,
    wrong_rows,
)
from smdt.training.gathering import gather_equal


@dataclass(frozen=True)
class CachedGradient:
    """The loss's gradient with respect to what the towers put out on this rank.

    Attributes:
        ground: with respect to the ground descriptors [b, D], of the whole loss.
        aerial: likewise to the aerial ones.
        scalars: with respect to the scalars after them, [1] each, of this rank's share: every rank
            has the same scalars, and ranks add up in the backward.
    """

    ground: Tensor
    aerial: Tensor
    scalars: Sequence[Tensor]

    def surrogate(self, outputs: Sequence[Tensor], rows: slice) -> Tensor:
        """Return a scalar whose gradient is that of the loss, as far as some rows carry it.

        Args:
            outputs: what the towers put out for the rows, with a graph.
            rows: of this rank's share; slices that partition it carry each scalar's gradient once.
        """
        ground, aerial, *scalars = outputs
        part = len(ground) / len(self.ground)
        surrogate = (ground * self.ground[rows]).sum() + (aerial * self.aerial[rows]).sum()
        for scalar, gradient in zip(scalars, self.scalars, strict=True):
            surrogate = surrogate + part * (scalar * gradient).sum()
        return surrogate


def loss_over_ranks(
    config: LossConfig, chunks: Sequence[Sequence[Tensor]], shown_bS: NDArray[np.int64]
) -> tuple[Tensor, CachedGradient]:
    """Take this rank's rows of the global loss; all ranks call it.

    Args:
        config: the loss.
        chunks: what the towers put out for each chunk of this rank's share: ground and aerial
            descriptors, then the scalars that the loss learns.
        shown_bS: places of this rank's pairs (`Batch.shown`).

    Returns:
        The rows' share of the loss, and its gradient.
    """
    own = [torch.cat([outputs[view].detach() for outputs in chunks]) for view in (0, 1)]
    scalars = [scalar.detach().requires_grad_() for scalar in chunks[0][2:]]
    device, count = own[0].device, len(own[0])
    shown_BS = gather_equal(torch.from_numpy(shown_bS).to(device))
    everyone = [gather_equal(descriptors).requires_grad_() for descriptors in own]
    start = dist.get_rank() * count
    rows = slice(start, start + count)
    share = share_of_rows(config, everyone, rows, wrong_rows(shown_BS, rows), scalars)
    gradients = torch.autograd.grad(share, [*everyone, *scalars])
    for gradient in gradients[:2]:
        dist.all_reduce(gradient)
    ground, aerial, *of_scalars = gradients
    return share.detach(), CachedGradient(ground[rows], aerial[rows], of_scalars)


def share_of_rows(
    config: LossConfig,
    descriptors: Sequence[Tensor],
    rows: slice,
    wrong: Wrong,
    scalars: Sequence[Tensor],
) -> Tensor:
    """Return some rows' share of the loss that a configuration names."""
    ground, aerial = descriptors
    match config:
        case SoftMarginConfig():
            return soft_margin_rows(ground, aerial, rows, wrong, config.gamma)
        case InfoNceConfig():
            (scale,) = scalars
            return info_nce_rows(ground, aerial, rows, wrong, scale, config.label_smoothing)

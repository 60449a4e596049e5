"""Contrastive losses over the descriptors of all ranks, and their gradient for each rank.

Every rank takes its rows of the loss, so that memory is O(L x B): shares that add up to the mean
of the global batch. A new loss is a configuration in `LossConfig`, a function of a rank's rows, and
a case in `local_contrastive_loss`.

B pairs of the global batch, L rows of this rank, b pairs of this rank, D descriptor, S places of a
pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from torch import Tensor
from torch.nn.functional import softplus

from smdt.training.ranks.gathering import all_gather_rows


class SoftMarginConfig(BaseModel):
    """Soft-margin triplet loss (Hu et al. 2018, section 4.2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["soft_margin"] = "soft_margin"
    """The loss: every other place of the global batch is a negative."""
    gamma: float = Field(default=10.0, gt=0)
    """Sharpness of the margin."""


class InfoNceConfig(BaseModel):
    """Symmetric InfoNCE with a learned temperature (Radford et al. 2021, section 2.3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["info_nce"]
    """The loss: find the true one among all places of the global batch."""
    temperature: float = Field(default=0.07, gt=0)
    """Initial temperature that divides the cosines."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all places."""


def _name(loss: object) -> str:
    """Return the loss of a `loss` section; the default is the paper's."""
    section = loss.model_dump() if isinstance(loss, BaseModel) else loss
    return str(section.get("name", "soft_margin")) if isinstance(section, dict) else "soft_margin"


LossConfig = Annotated[
    Annotated[SoftMarginConfig, Tag("soft_margin")] | Annotated[InfoNceConfig, Tag("info_nce")],
    Discriminator(_name),
]
"""The loss of the retrieval stage, by its `name`."""


@dataclass(frozen=True)
class NegativeMask:
    """Negatives of this rank's rows: bool [L, B] each, False at the row's own pair.

    Attributes:
        aerial: aerial images that do not show the place of a row's panorama.
        ground: panoramas whose place a row's aerial image does not show.
    """

    aerial: Tensor
    ground: Tensor


def negative_mask(shown_BS: Tensor, rows: slice) -> NegativeMask:
    """Say which pairs of a batch are negatives of which.

    A batch holds no place twice, but overlapping tiles may show one place (VIGOR's semi-positives).

    Args:
        shown_BS: int64, of every pair the place of its aerial image, then other places that its
            panorama also belongs to; -1 is padding.
        rows: the pairs that are queries here, without a step.
    """
    place_B = shown_BS[:, 0]
    shows_LB = (shown_BS[rows, :, None] == place_B).any(dim=1)
    shown_by_LB = (place_B[rows, None, None] == shown_BS).any(dim=2)
    return NegativeMask(aerial=~shows_LB, ground=~shown_by_LB)


def local_soft_margin_loss(
    ground_BD: Tensor, aerial_BD: Tensor, rows: slice, wrong: NegativeMask, gamma: float
) -> Tensor:
    """This rank's share of the soft-margin triplet loss, both directions; memory is O(L x B).

    Summed over slices that partition the batch it is the loss of docs/method.md, the mean over
    both directions of `sum over i != j of softplus(gamma (d_ii - d_ij)) / (B (B - 1))` with
    d = 2 - 2 cos. A pair that is not a negative adds nothing to the sum.

    Args:
        ground_BD: L2-normalised descriptors of all ranks' ground images.
        aerial_BD: those of their aerial images; row i of both is a pair.
        rows: the pairs that are queries here, without a step.
        wrong: their negatives.
        gamma: sharpness of the margin.

    Raises:
        ValueError: the batch has a single pair, and so no negative.
    """
    batch = len(ground_BD)
    _require_negatives(batch)
    total = torch.zeros((), device=ground_BD.device)
    for query_LD, gallery_BD, wrong_LB in (
        (ground_BD[rows], aerial_BD, wrong.aerial),
        (aerial_BD[rows], ground_BD, wrong.ground),
    ):
        cosine_LB = query_LD @ gallery_BD.T
        margin_LB = 2 * (cosine_LB - cosine_LB.gather(1, _own_pairs(rows, batch, query_LD.device)))
        total = total + softplus(gamma * margin_LB.masked_fill(~wrong_LB, -torch.inf)).sum()
    return total / (2 * batch * (batch - 1))


def local_info_nce_loss(
    ground_BD: Tensor,
    aerial_BD: Tensor,
    rows: slice,
    wrong: NegativeMask,
    scale: Tensor,
    label_smoothing: float,
) -> Tensor:
    """This rank's share of the symmetric InfoNCE, both directions; memory is O(L x B).

    Summed over slices that partition the batch it is the mean over both directions and all pairs
    of the cross-entropy between softmax(scale * cos) and the smoothed target, over the true one
    and the negatives.

    Args:
        ground_BD: L2-normalised descriptors of all ranks' ground images.
        aerial_BD: those of their aerial images; row i of both is a pair.
        rows: the pairs that are queries here, without a step.
        wrong: their negatives.
        scale: [1], the inverse temperature.
        label_smoothing: share of the target that is spread evenly.

    Raises:
        ValueError: the batch has a single pair, and so no negative.
    """
    batch = len(ground_BD)
    _require_negatives(batch)
    true_L1 = _own_pairs(rows, batch, ground_BD.device)
    total = torch.zeros((), device=ground_BD.device)
    for query_LD, gallery_BD, wrong_LB in (
        (ground_BD[rows], aerial_BD, wrong.aerial),
        (aerial_BD[rows], ground_BD, wrong.ground),
    ):
        logit_LB = scale * (query_LD @ gallery_BD.T)
        counted_LB = wrong_LB.scatter(1, true_L1, True)
        entropy_L = logit_LB.masked_fill(~counted_LB, -torch.inf).logsumexp(dim=1)
        mean_L = (logit_LB * counted_LB).sum(dim=1) / counted_LB.sum(dim=1)
        true_L = logit_LB.gather(1, true_L1).squeeze(1)
        target_L = (1 - label_smoothing) * true_L + label_smoothing * mean_L
        total = total + (entropy_L - target_L).sum()
    return total / (2 * batch)


def _require_negatives(batch: int) -> None:
    if batch < 2:
        raise ValueError("a contrastive loss needs a global batch of at least 2 pairs")


def _own_pairs(rows: slice, batch: int, device: torch.device) -> Tensor:
    """The rows' own pairs, int64 [L, 1]."""
    return torch.arange(batch, device=device)[rows].unsqueeze(1)


@dataclass(frozen=True)
class CachedGradient:
    """The loss's gradient with respect to what the towers put out on this rank.

    Attributes:
        ground: with respect to the ground descriptors [b, D], of the whole loss.
        aerial: with respect to the aerial descriptors [b, D], of the whole loss.
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


def gathered_contrastive_loss(
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
    shown_BS = all_gather_rows(torch.from_numpy(shown_bS).to(device))
    everyone = [all_gather_rows(descriptors).requires_grad_() for descriptors in own]
    start = dist.get_rank() * count
    rows = slice(start, start + count)
    share = local_contrastive_loss(config, everyone, rows, negative_mask(shown_BS, rows), scalars)
    gradients = torch.autograd.grad(share, [*everyone, *scalars])
    for gradient in gradients[:2]:
        dist.all_reduce(gradient)
    ground, aerial, *of_scalars = gradients
    return share.detach(), CachedGradient(ground[rows], aerial[rows], of_scalars)


def local_contrastive_loss(
    config: LossConfig,
    descriptors: Sequence[Tensor],
    rows: slice,
    wrong: NegativeMask,
    scalars: Sequence[Tensor],
) -> Tensor:
    """Return some rows' share of the loss that a configuration names."""
    ground, aerial = descriptors
    match config:
        case SoftMarginConfig():
            return local_soft_margin_loss(ground, aerial, rows, wrong, config.gamma)
        case InfoNceConfig():
            (scale,) = scalars
            return local_info_nce_loss(ground, aerial, rows, wrong, scale, config.label_smoothing)

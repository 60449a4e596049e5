"""Losses over a global batch, one rank's rows at a time: shares that add up to the batch's mean.

B global batch, D descriptor, L this rank's rows, C channels, H rows and W columns of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from torch import Tensor
from torch.nn.functional import softplus


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
    """What cosines are divided by when training begins."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all places."""


def _name(loss: object) -> str:
    """Which loss a `loss` section is; unsaid is the paper's."""
    if isinstance(loss, SoftMarginConfig | InfoNceConfig):
        return loss.name
    return str(loss.get("name", "soft_margin")) if isinstance(loss, dict) else "soft_margin"


LossConfig = Annotated[
    Annotated[SoftMarginConfig, Tag("soft_margin")] | Annotated[InfoNceConfig, Tag("info_nce")],
    Discriminator(_name),
]
"""The loss of the retrieval stage, by its `name`."""


class AlignmentLossConfig(BaseModel):
    """The losses of the alignment stage beside the adversarial ones, which have weight 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    l1_segmentation: float = Field(default=100.0, ge=0)
    """Weight of the distance of S_g' from S, in palette colours."""
    l1_image: float = Field(default=100.0, ge=0)
    """Weight of the distance of I_g' from I."""


@dataclass(frozen=True)
class Wrong:
    """What this rank's rows must not be mistaken for: bool [L, B] each, never a row's own pair.

    Attributes:
        aerial: aerial images that do not show the place of a row's panorama.
        ground: panoramas whose place a row's aerial image does not show.
    """

    aerial: Tensor
    ground: Tensor


def wrong_rows(shown_BS: Tensor, rows: slice) -> Wrong:
    """Say which pairs of a batch are negatives of which.

    A batch holds no place twice, but overlapping tiles may show one place (VIGOR's semi-positives).

    Args:
        shown_BS: int64, of every pair the place of its aerial image, then other places that its
            panorama also belongs to; -1 is none.
        rows: the pairs that are queries here, without a step.
    """
    place_B = shown_BS[:, 0]
    shows_LB = (shown_BS[rows, :, None] == place_B).any(dim=1)
    shown_by_LB = (place_B[rows, None, None] == shown_BS).any(dim=2)
    return Wrong(aerial=~shows_LB, ground=~shown_by_LB)


def soft_margin_rows(
    ground_BD: Tensor, aerial_BD: Tensor, rows: slice, wrong: Wrong, gamma: float
) -> Tensor:
    """This rank's share of the soft-margin triplet loss, both directions; memory is O(L x B).

    Summed over slices that partition the batch it is the loss of docs/method.md, the mean over
    both directions of `sum over i != j of softplus(gamma (d_ii - d_ij)) / (B (B - 1))` with
    d = 2 - 2 cos. A pair that is no negative adds nothing to the sum.

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


def info_nce_rows(
    ground_BD: Tensor,
    aerial_BD: Tensor,
    rows: slice,
    wrong: Wrong,
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


def adversarial_share(scores: Sequence[Tensor], true: bool, global_batch: int) -> Tensor:
    """Some samples' share of a discriminator's binary cross-entropy, over all of its scales.

    Summed over samples it is the mean over the global batch, over scales and over a scale's pixels.

    Args:
        scores: logits [L, 1, h, w], one tensor a scale.
        true: whether these are to be taken for true pairs.
        global_batch: B.
    """
    sign = -1.0 if true else 1.0
    means = [softplus(sign * score).mean() * len(score) for score in scores]
    return torch.stack(means).mean() / global_batch


def l1_share(
    generated: Tensor, target: Tensor, global_batch: int, known: Tensor | None = None
) -> Tensor:
    """Some samples' share of the mean absolute difference.

    The mean is taken over the known pixels of each sample, then over the samples: a sample with
    much void counts as much as any other, and no rank needs another one's count. A sample that is
    all void counts as zero.

    Args:
        generated: [L, C, H, W].
        target: the same.
        global_batch: B.
        known: bool [L, H, W], pixels that count; None is all.
    """
    difference_LHW = (generated - target).abs().mean(dim=1)
    if known is None:
        return difference_LHW.mean(dim=(1, 2)).sum() / global_batch
    counted_L = known.sum(dim=(1, 2)).clamp(min=1)
    return ((difference_LHW * known).sum(dim=(1, 2)) / counted_L).sum() / global_batch

"""Keep and remove: whole classes of the ground image become white or black.

*Keep c*: pixels of other classes become white. *Remove c*: pixels of class c become black. Each is
drawn for each sample and class from (seed, epoch, sample id) alone: a resumed run, or another
number of ranks, draws the same. All of several kept classes stay; what is kept and removed is
removed. Void is not a class: it is white where anything is kept, and nothing removes it.

B batch, C channels, H rows, W columns, K classes.
"""

import difflib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from data_shards.format.classes import CLASS_COUNT
from smdt.data.randomness import seed_for
from smdt.semantics.labels import CLASSES

WHITE, BLACK = 255, 0
ID_COUNT = 256

Probability = Annotated[float, Field(ge=0, le=1)]


class SemanticsConfig(BaseModel):
    """Augmentation drawn for each ground image in each epoch, as `vegetation: 0.1`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: dict[str, Probability] = {}
    """By class, how often its pixels alone stay and the others become white."""
    remove: dict[str, Probability] = {}
    """By class, how often its pixels become black."""

    @field_validator("keep", "remove")
    @classmethod
    def _known_classes(cls, chances: dict[str, float]) -> dict[str, float]:
        for name in chances:
            if name not in CLASSES:
                (nearest,) = difflib.get_close_matches(name, CLASSES, n=1, cutoff=0.0)
                raise ValueError(f"'{name}' is not a class; did you mean '{nearest}'?")
        return chances

    @property
    def needs_classes(self) -> bool:
        """Whether anything can be drawn, and batches need class maps."""
        return any(self.keep.values()) or any(self.remove.values())


@dataclass(frozen=True)
class ClassMasking:
    """The draws of a batch.

    Attributes:
        kept: bool [B, K].
        removed: bool [B, K].
    """

    kept: NDArray[np.bool_]
    removed: NDArray[np.bool_]

    def apply(self, ground: Tensor, classes: Tensor) -> Tensor:
        """Paint over what is not kept, then what is removed.

        Args:
            ground: [B, C, H, W], values 0 to 255, any dtype.
            classes: class ids uint8 [B, H, W] of the same pixels.

        Returns:
            A new tensor like `ground`.
        """
        white_BI, black_BI = self._painted(ground.device)
        id_BN = classes.flatten(1).long()
        white_BHW = white_BI.gather(1, id_BN).view(classes.shape)
        black_BHW = black_BI.gather(1, id_BN).view(classes.shape)
        painted = ground.masked_fill(white_BHW.unsqueeze(1), WHITE)
        return painted.masked_fill(black_BHW.unsqueeze(1), BLACK)

    def _painted(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return which ids become white and which black, bool [B, 256] each."""
        white = np.repeat(self.kept.any(axis=1, keepdims=True), ID_COUNT, axis=1)
        white[:, :CLASS_COUNT] &= ~self.kept
        black = np.zeros_like(white)
        black[:, :CLASS_COUNT] = self.removed
        return torch.from_numpy(white).to(device), torch.from_numpy(black).to(device)


def draw_class_masking(
    config: SemanticsConfig, seed: int, epoch: int, sample_ids: NDArray[np.int64]
) -> ClassMasking:
    """Draw for the samples of a batch (pure).

    A class has its own number of each sample: what is configured for others changes nothing.

    Args:
        config: what may be drawn.
        seed: of the run.
        epoch: of the batch.
        sample_ids: [B].
    """
    chances_2K = np.array(
        [[chances.get(name, 0.0) for name in CLASSES] for chances in (config.keep, config.remove)]
    )
    numbers_B2K = np.array(
        [
            np.random.default_rng(seed_for("semantics", seed, epoch, int(sample_id))).random(
                (2, CLASS_COUNT)
            )
            for sample_id in sample_ids
        ]
    ).reshape(-1, 2, CLASS_COUNT)
    drawn_B2K = numbers_B2K < chances_2K
    return ClassMasking(kept=drawn_B2K[:, 0], removed=drawn_B2K[:, 1])

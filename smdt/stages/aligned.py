"""Aligned images: what the generators of a trained alignment make of aerial images.

H rows, W columns.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.finalize import sha256
from smdt import config as configuration
from smdt.config import AlignmentConfig
from smdt.data.batch import Batch
from smdt.geometry.mapping import PanoramaMapping
from smdt.geometry.view import normalise, to_levels
from smdt.stages.alignment import AlignmentStage
from smdt.stages.weights import load_weights
from smdt.training import checkpoint


class FrozenAlignment:
    """A trained alignment that learns nothing more, in fp32.

    Args:
        folder: its checkpoint.

    Attributes:
        config: of its run.
        sha256: of its weights, hexadecimal.

    Raises:
        InputError: the checkpoint is of another stage, or its weights do not fit.
    """

    def __init__(self, folder: Path) -> None:
        config = configuration.load(folder / checkpoint.CONFIG)
        if not isinstance(config, AlignmentConfig):
            raise InputError(
                f"{folder} is of stage {config.stage!r}: name a checkpoint of the alignment stage"
            )
        self.config = config
        self.sha256 = sha256(folder / checkpoint.WEIGHTS)
        self._stage = AlignmentStage(config)
        load_weights(self._stage, folder)
        for module in self._stage.modules().values():
            module.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def __call__(self, batch: Batch, rows: slice) -> Tensor:
        """Return the aligned images of some rows, on the batch's device.

        The same image in another batch differs by less than a level: convolutions may add up in
        another order there. One row at a time gives the same bits whatever the batch.

        Returns:
            uint8 [rows, 3, H, W].
        """
        aerial = mapped(self._stage.mapping, batch, rows)
        if aerial.device != self._device:
            self._device = aerial.device
            for module in self._stage.modules().values():
                module.to(aerial.device)
        _, ground = self._stage.align(normalise(aerial))
        return to_levels(ground)


def mapped(mapping: PanoramaMapping, batch: Batch, rows: slice) -> Tensor:
    """Return the mapped aerial images of some rows: float32 [rows, 3, H, W], 0 to 255."""
    elevation = np.stack([batch.elevation_min[rows], batch.elevation_max[rows]], axis=1)
    panoramas: Tensor = mapping(batch.images["aerial"][rows], batch.extent_m[rows], elevation)
    return panoramas

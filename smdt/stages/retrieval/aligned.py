"""Aligned images: what the generators of a trained alignment make of aerial images, and whose.

Retrieval that was trained on them is worth nothing with those of other generators: a run remembers
the SHA-256 of the weights.

H rows, W columns.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.base.errors import DataInputError, InputError
from data_shards.build.finalize import sha256
from smdt.data.batch import Batch
from smdt.data.split import Split
from smdt.geometry.view import normalise, to_levels
from smdt.stages import config as configuration
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.base_config import Config
from smdt.stages.mapped import mapped
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.weights import load_weights, resolve_checkpoint
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder


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

    def require(self, split: Split) -> None:
        """Check that a split's tiles can be aligned.

        Raises:
            DataInputError: they can't be mapped.
        """
        self._stage.require(split)

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


def pin_alignment_weights(config: Config, resumed: Path | None = None) -> Config:
    """Return the configuration with the SHA-256 of what makes a run's aligned images.

    Every rank calls it and gets what rank 0 found. Other configurations are not changed.

    Args:
        config: of the run.
        resumed: the checkpoint that the run resumes from, None for a new run.

    Raises:
        InputError: there is no such alignment, or it is not the one that the run began with.
    """
    if not isinstance(config, RetrievalConfig) or config.aerial != "aligned":
        return config
    found = [config]
    if not dist.is_initialized() or dist.get_rank() == 0:
        found = [_pinned(config, resumed)]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def _pinned(config: RetrievalConfig, resumed: Path | None) -> RetrievalConfig:
    alignment = config.alignment
    if alignment.sha256 is None and resumed is not None:
        before = configuration.load(resumed / checkpoint.CONFIG)
        if isinstance(before, RetrievalConfig):
            alignment = alignment.model_copy(update={"sha256": before.alignment.sha256})
    if alignment.checkpoint is not None:
        folder = find_alignment(Path(alignment.checkpoint), alignment.sha256)
        found: str | None = sha256(folder / checkpoint.WEIGHTS)
    else:
        split = Split.open(config.data.shards, config.data.split, config.data.cache)
        require_same_alignment(split, alignment.sha256)
        found = alignment_weights_sha256(split)
    alignment = alignment.model_copy(update={"sha256": found})
    return config.model_copy(update={"alignment": alignment})


def find_alignment(trained: Path, wanted_sha256: str | None) -> Path:
    """Return the checkpoint folder that `trained` means, or where it has these weights.

    Args:
        trained: a run or a checkpoint.
        wanted_sha256: of the weights; None: the newest whole checkpoint of a run.

    Raises:
        InputError: there is none.
    """
    if wanted_sha256 is None:
        return resolve_checkpoint(trained)
    for folder in (trained, *checkpoint.published(RunFolder(trained).checkpoints)):
        weights = folder / checkpoint.WEIGHTS
        if weights.is_file() and sha256(weights) == wanted_sha256:
            return folder
    raise InputError(
        f"{trained} has no weights with SHA-256 {wanted_sha256}, and the towers were trained "
        "on its aligned images: restore that checkpoint, or name it "
        "(alignment.checkpoint, --alignment)"
    )


def require_same_alignment(split: Split, wanted_sha256: str | None) -> None:
    """Check that a split's aligned images were made by certain weights; None is satisfied by any.

    Raises:
        DataInputError: they were made by others.
    """
    there = alignment_weights_sha256(split)
    if wanted_sha256 is not None and there != wanted_sha256:
        raise DataInputError(
            f"The aligned images in {split.root} were made by weights with SHA-256 "
            f"{there or 'unknown'}, and the towers were trained on images of {wanted_sha256}: "
            "make them again with `smdt align`, or let those generators make them "
            "(alignment.checkpoint, "
            "--alignment)."
        )


def alignment_weights_sha256(split: Split) -> str | None:
    """Return the SHA-256 of the weights that made a split's aligned images, None if unknown."""
    hashes = split.made.get("aligned", {}).get("sha256")
    found = hashes.get(checkpoint.WEIGHTS) if isinstance(hashes, dict) else None
    return found if isinstance(found, str) else None

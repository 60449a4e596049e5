"""Input of the aerial tower: raw tiles, mapped or aligned panoramas.

H rows, W columns.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from torch import Tensor

from smdt.data.batch import Batch
from smdt.data.split import Split
from smdt.geometry.augment import Draw
from smdt.geometry.mapping import GeometryConfig, PanoramaProjection, Projection
from smdt.geometry.view import resize
from smdt.stages.mapped import mapped, require_mappable, warn_of_elevations
from smdt.stages.retrieval.aligned import FrozenAlignment, find_alignment, require_same_alignment
from smdt.stages.retrieval.config import RetrievalConfig


class AerialImages(ABC):
    """Makes what the aerial tower sees.

    Args:
        config: of the run.

    Attributes:
        size: H and W.
    """

    def __init__(self, config: RetrievalConfig) -> None:
        self.size = config.aerial_size

    @abstractmethod
    def __call__(self, batch: Batch, rows: slice) -> Tensor:
        """Return some rows' images: [rows, 3, H, W], values 0 to 255, on the batch's device."""

    def moved(self, images: Tensor, drawn: Draw) -> Tensor:
        """Turn and mirror images as their panoramas."""
        return drawn.apply(images)

    def require(self, split: Split) -> None:
        """Check that a split's samples are what the towers were trained on.

        Raises:
            DataInputError: they are not.
        """
        del split


class RawTiles(AerialImages):
    """The aerial image itself, north up."""

    def __call__(self, batch: Batch, rows: slice) -> Tensor:
        """Resize."""
        return resize(batch.images["aerial"][rows], self.size)

    def moved(self, images: Tensor, drawn: Draw) -> Tensor:
        """Rotate and mirror."""
        return drawn.apply_to_tiles(images)


class MappedTiles(AerialImages):
    """The aerial image, unrolled around its centre."""

    def __init__(self, config: RetrievalConfig, mapping: Projection) -> None:
        super().__init__(config)
        panorama = config.geometry.model_dump(exclude={"tile_size"})
        self._mapping = PanoramaProjection(GeometryConfig(mapping=mapping, **panorama), *self.size)

    def __call__(self, batch: Batch, rows: slice) -> Tensor:
        """Unroll."""
        return mapped(self._mapping, batch, rows)

    def require(self, split: Split) -> None:
        """Check that its tiles can be unrolled."""
        require_mappable(self._mapping.config, split)
        warn_of_elevations(self._mapping.config, split)


class AlignedFromShards(AerialImages):
    """Aligned images from the shards, made by `smdt align`."""

    def __init__(self, config: RetrievalConfig) -> None:
        super().__init__(config)
        self._sha256 = config.alignment.sha256

    def __call__(self, batch: Batch, rows: slice) -> Tensor:
        """Resize, where the alignment has another size."""
        return resize(batch.images["aligned"][rows], self.size)

    def require(self, split: Split) -> None:
        """Check whose the aligned images are."""
        require_same_alignment(split, self._sha256)


class AlignedOnTheFly(AerialImages):
    """Aligned images, made on the fly by frozen generators."""

    def __init__(self, config: RetrievalConfig, checkpoint: Path) -> None:
        super().__init__(config)
        self._checkpoint, self._sha256 = checkpoint, config.alignment.sha256

    @cached_property
    def _alignment(self) -> FrozenAlignment:
        """The generators, loaded on first use: a photo search does not need them."""
        return FrozenAlignment(find_alignment(self._checkpoint, self._sha256))

    def __call__(self, batch: Batch, rows: slice) -> Tensor:
        """Generate, then resize as what is in shards."""
        return resize(self._alignment(batch, rows).permute(0, 2, 3, 1), self.size)

    def require(self, split: Split) -> None:
        """Load the generators, and check that they can work on the split.

        Raises:
            InputError: they are not to be found, or can't.
        """
        self._alignment.require(split)


def aerial_images(config: RetrievalConfig) -> AerialImages:
    """Return what makes the images that a configuration asks for."""
    match config.aerial:
        case "raw":
            return RawTiles(config)
        case "aligned":
            checkpoint = config.alignment.checkpoint
            return (
                AlignedFromShards(config)
                if checkpoint is None
                else AlignedOnTheFly(config, Path(checkpoint))
            )
        case mapping:
            return MappedTiles(config, mapping)


def aerial_view(config: RetrievalConfig) -> str:
    """Return the part of a sample that the images are made from."""
    from_shards = config.aerial == "aligned" and config.alignment.checkpoint is None
    return "aligned" if from_shards else "aerial"

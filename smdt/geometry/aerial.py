"""Configuration of the aerial tower's input."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from smdt.geometry.mapping import PanoramaConfig

Aerial = Literal["raw", "polar", "perspective", "mixed", "aligned"]

TILE_STEP = 16
"""Sides of raw tiles are multiples of it, as those of panoramas: the towers divide by it."""


class RetrievalGeometryConfig(PanoramaConfig):
    """Sizes of what the towers see. Which mapping there is, if any, is said by `aerial`."""

    tile_size: int | None = Field(default=None, gt=0, multiple_of=TILE_STEP)
    """Rows and columns of a raw tile; None: the square that has about a panorama's pixels."""

    @model_validator(mode="before")
    @classmethod
    def _mapping_is_said_elsewhere(cls, content: object) -> object:
        if isinstance(content, dict) and "mapping" in content:
            raise ValueError(
                "`mapping` is a key of the alignment stage; retrieval says what its aerial tower "
                f"sees in one place: write aerial={content['mapping']} at the top"
            )
        return content

    @property
    def tile_side(self) -> int:
        """Rows and columns of a raw tile."""
        height, width = self.panorama_size
        steps = round(math.sqrt(height * width) / TILE_STEP)
        return self.tile_size or max(1, steps) * TILE_STEP


class AlignmentSourceConfig(BaseModel):
    """The source of the aligned images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str | None = None
    """Run or checkpoint of the alignment stage whose frozen generators make them during training;
    None: they are in the shards, made by `smdt align`."""
    sha256: str | None = None
    """SHA-256 of the generators' weights: set when a run starts, and required in its
    evaluations."""

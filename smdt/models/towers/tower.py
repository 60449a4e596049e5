"""The interface of a tower: images of one view to descriptors.

B batch, H rows, W columns, D descriptor.
"""

from abc import ABC, abstractmethod
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import normalize

from smdt.geometry.view import normalise
from smdt.models.normalisation import Normalisation
from smdt.models.towers.pooling import Pooling

Size = tuple[int, int]
"""Rows and columns of an image."""


class TowersConfig(BaseModel):
    """Options of every backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared: bool = False
    """One tower for both views."""
    pooling: Pooling | None = None
    """Pooling; by default the class token where there is one, else `mean`."""
    normalisation: Literal["half", "imagenet"] | None = None
    """Scale of the images; by default the one that the backbone's published weights expect."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and compute the rest again: less memory, a third more time."""
    compile: bool = False
    """Let torch.compile fuse the layers; the first steps then take minutes."""


class Tower(nn.Module, ABC):
    """Images of one view to L2-normalised descriptors.

    Attributes:
        descriptor_dim: D.
    """

    descriptor_dim: int

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self._normalisation = normalisation

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Describe normalised images [B, 3, H, W], in the parameters' dtype: [B, D]."""

    @abstractmethod
    def depths(self) -> dict[str, int]:
        """Return the depth of the layer that each parameter belongs to, 0 next to the image."""

    @abstractmethod
    def compile_layers(self) -> Self:
        """Have torch.compile fuse what it can when it is first called; return the tower."""

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, H, W] with values 0 to 255, any dtype; the result is fp32."""
        dtype = next(self.parameters()).dtype
        scaled = normalise(images, self._normalisation.mean, self._normalisation.std)
        return normalize(self.features(scaled.to(dtype)).float(), dim=-1)

"""The retrieval model: one tower embeds ground panoramas, one embeds (mapped) aerial images.

B batch, C channels, H rows, W columns, D descriptor.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from smdt.models.stem import STRIDE, ConvStemConfig, StemConfig, make_stem
from smdt.models.vit import Attention, TransformerEncoder


class TwoTowerConfig(BaseModel):
    """Sizes of the two towers. The defaults are the tiny variant, sized for a CPU.

    R50 + ViT-B/16 of the paper is `stem: {kind: resnet}`, `width: 768`, `layers: 12`, `heads: 12`,
    `hidden: 3072`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stem: StemConfig = ConvStemConfig()
    """The convolutional stem."""
    width: int = Field(default=128, ge=1)
    """Width of a token, and so of a descriptor."""
    layers: int = Field(default=3, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides `width`."""
    hidden: int = Field(default=256, ge=1)
    """Width of the perceptron inside a layer."""
    attention: Attention = "cross_layer"
    """Where keys come from: the input of the layer before (EgoTR), or the layer's own."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping a unit after the positions, the attention and the perceptron."""
    shared: bool = False
    """One tower for both views, which must then have equal sizes."""

    @model_validator(mode="after")
    def _divisible(self) -> "TwoTowerConfig":
        if self.width % self.heads:
            raise ValueError(f"model.heads {self.heads} must divide model.width {self.width}")
        if self.stem.width % self.stem.groups:
            raise ValueError(
                f"model.stem.groups {self.stem.groups} must divide "
                f"model.stem.width {self.stem.width}"
            )
        return self


class Tower(nn.Module):
    """Images [B, 3, H, W] of one size to L2-normalised fp32 descriptors [B, D]."""

    def __init__(self, config: TwoTowerConfig, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"an image of {height}x{width} does not divide into patches: "
                f"choose a height and a width that are multiples of {STRIDE}"
            )
        self.stem = make_stem(config.stem)
        self.project = nn.Conv2d(config.stem.channels, config.width, 1)
        self.encoder = TransformerEncoder(
            patches=(height // STRIDE) * (width // STRIDE),
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            hidden=config.hidden,
            dropout=config.dropout,
            attention=config.attention,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images; they are cast to the parameters' dtype, the result is fp32."""
        images = images.to(self.project.weight.dtype)
        patches = self.project(self.stem(images)).flatten(2).transpose(1, 2)
        return normalize(self.encoder(patches).float(), dim=-1)


class TwoTower(nn.Module):
    """A ground and an aerial tower with a common descriptor space.

    Args:
        config: their sizes.
        ground_size: rows and columns of ground panoramas.
        aerial_size: of aerial images.
        temperature: of the loss before it is learned; None: the loss learns none.

    Attributes:
        log_scale: [1], logarithm of what the loss multiplies cosines by, or None.
    """

    def __init__(
        self,
        config: TwoTowerConfig,
        ground_size: tuple[int, int],
        aerial_size: tuple[int, int],
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if config.shared and ground_size != aerial_size:
            raise ValueError(
                "model.shared needs equal sizes of both views, not "
                f"{ground_size[0]}x{ground_size[1]} and {aerial_size[0]}x{aerial_size[1]}"
            )
        self.descriptor_dim = config.width
        self.ground = Tower(config, ground_size)
        self.aerial = self.ground if config.shared else Tower(config, aerial_size)
        self.log_scale: nn.Parameter | None = None
        if temperature is not None:
            # DeepSpeed takes no parameter without dimensions.
            self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def embed_ground(self, ground: Tensor) -> Tensor:
        """Descriptors [B, D] of ground panoramas [B, 3, H, W]."""
        descriptors: Tensor = self.ground(ground)
        return descriptors

    def embed_aerial(self, aerial: Tensor) -> Tensor:
        """Descriptors [B, D] of (mapped) aerial images [B, 3, H, W]."""
        descriptors: Tensor = self.aerial(aerial)
        return descriptors

    def forward(self, ground: Tensor | None, aerial: Tensor | None) -> tuple[Tensor, ...]:
        """L2-normalised fp32 descriptors [B, D] of each view that there is; a learned scale [1]."""
        descriptors = [] if ground is None else [self.embed_ground(ground)]
        if aerial is not None:
            descriptors.append(self.embed_aerial(aerial))
        if self.log_scale is None:
            return tuple(descriptors)
        return (*descriptors, self.log_scale.float().exp())

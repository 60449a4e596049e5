"""The paper's tower: a convolutional stem, then a Transformer over its features.

B batch, C channels, H rows, W columns, D descriptor.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from data_shards.base.errors import InputError
from smdt.models.normalisation import NORMALISATIONS
from smdt.models.towers.stem import STRIDE, ConvStemConfig, ResNetStemConfig, StemConfig, make_stem
from smdt.models.towers.tower import Size, Tower, TowersConfig
from smdt.models.towers.vit import Attention, TransformerEncoder


class HybridConfig(TowersConfig):
    """Sizes of the stem and of the Transformer; each named variant has its own defaults."""

    stem: StemConfig
    """The convolutional stem."""
    width: int = Field(ge=1)
    """Width of a token, and so of a descriptor."""
    layers: int = Field(ge=1)
    """Transformer layers."""
    heads: int = Field(ge=1)
    """Attention heads; divides `width`."""
    hidden: int = Field(ge=1)
    """Width of the perceptron inside a layer."""
    attention: Attention = "cross_layer"
    """Where keys come from: the input of the layer before (EgoTR), or the layer's own."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping a unit after the positions and in the perceptron."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.heads {self.heads} must divide model.width {self.width}")
        if self.stem.width % self.stem.groups:
            raise ValueError(
                f"model.stem.groups {self.stem.groups} must divide "
                f"model.stem.width {self.stem.width}"
            )
        return self


class TinyConfig(HybridConfig):
    """A variant that a CPU can train."""

    backbone: Literal["tiny"] = "tiny"
    """The network."""
    stem: StemConfig = ConvStemConfig()
    width: int = Field(default=128, ge=1)
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=256, ge=1)


class R50VitB16Config(HybridConfig):
    """R50 + ViT-B/16 (Dosovitskiy et al. 2021), the paper's."""

    backbone: Literal["r50_vit_b16"]
    """The network."""
    stem: StemConfig = ResNetStemConfig()
    width: int = Field(default=768, ge=1)
    layers: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    hidden: int = Field(default=3072, ge=1)


class HybridTower(Tower):
    """Images [B, 3, H, W] of one size to descriptors [B, D].

    Raises:
        InputError: the size does not divide into patches.
    """

    def __init__(self, config: HybridConfig, size: Size) -> None:
        super().__init__(NORMALISATIONS[config.normalisation or "half"])
        rows, columns = size
        if rows % STRIDE or columns % STRIDE:
            raise InputError(
                f"an image of {rows}x{columns} does not divide into patches: "
                f"choose a height and a width that are multiples of {STRIDE}"
            )
        self.descriptor_dim = config.width
        self.stem = make_stem(config.stem, config.gradient_checkpointing)
        self.project = nn.Conv2d(config.stem.channels, config.width, 1)
        self.encoder = TransformerEncoder(
            grid=(rows // STRIDE, columns // STRIDE),
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            hidden=config.hidden,
            dropout=config.dropout,
            attention=config.attention,
            pooling=config.pooling or "class_token",
            gradient_checkpointing=config.gradient_checkpointing,
        )

    def features(self, images: Tensor) -> Tensor:
        """Describe normalised images."""
        patches = self.project(self.stem(images)).flatten(2).transpose(1, 2)
        vector: Tensor = self.encoder(patches)
        return vector

    def depths(self) -> dict[str, int]:
        """The stem, tokens and positions are 0, Transformer layer l is l + 1."""
        last = len(self.encoder.layers) + 1

        def depth(name: str) -> int:
            match name.split("."):
                case ["encoder", "layers", layer, *_]:
                    return int(layer) + 1
                case ["encoder", "norm" | "pool", *_]:
                    return last
            return 0

        return {name: depth(name) for name, _ in self.named_parameters()}

    def compile_layers(self) -> Self:
        """One graph for the stem, and one that all Transformer layers have in common."""
        self.stem.compile()
        for layer in self.encoder.layers:
            layer.compile()
        return self

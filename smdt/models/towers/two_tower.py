"""The retrieval model: one tower embeds ground panoramas, one embeds (mapped) aerial images.

B batch, H rows, W columns, D descriptor.
"""

import math
from typing import Annotated

import torch
from pydantic import Discriminator, Tag
from torch import Tensor, nn

from data_shards.base.errors import InputError
from smdt.models.towers.hybrid import HybridConfig, HybridTower, R50VitB16Config, TinyConfig
from smdt.models.towers.timm_tower import TimmConfig, TimmTower
from smdt.models.towers.tower import Size, Tower


def _variant(model: object) -> str:
    """Return the configuration class of a `model` section, by backbone; default: the tiny one."""
    if isinstance(model, TinyConfig | R50VitB16Config | TimmConfig):
        return _variant({"backbone": model.backbone})
    backbone = model.get("backbone", "tiny") if isinstance(model, dict) else "tiny"
    return backbone if backbone in ("tiny", "r50_vit_b16") else "timm"


TwoTowerConfig = Annotated[
    Annotated[TinyConfig, Tag("tiny")]
    | Annotated[R50VitB16Config, Tag("r50_vit_b16")]
    | Annotated[TimmConfig, Tag("timm")],
    Discriminator(_variant),
]
"""The two towers: `backbone` is ours (`tiny`, `r50_vit_b16`) or the name of a timm network."""


class TwoTower(nn.Module):
    """A ground and an aerial tower with a common descriptor space.

    Args:
        config: their sizes.
        ground_size: rows and columns of ground panoramas.
        aerial_size: of aerial images.
        temperature: of the loss before it is learned; None: the loss learns none.

    Attributes:
        descriptor_dim: D.
        log_scale: [1], logarithm of what the loss multiplies cosines by, or None.

    Raises:
        InputError: the sizes do not fit the backbone.
    """

    def __init__(
        self,
        config: HybridConfig | TimmConfig,
        ground_size: Size,
        aerial_size: Size,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if config.shared:
            self.ground = make_tower(config, (ground_size, aerial_size))
            self.aerial = None
        else:
            self.ground = make_tower(config, (ground_size,))
            self.aerial = make_tower(config, (aerial_size,))
        self.descriptor_dim = self.ground.descriptor_dim
        self.log_scale: nn.Parameter | None = None
        if temperature is not None:
            # DeepSpeed takes no parameter without dimensions.
            self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def embed_ground(self, ground: Tensor) -> Tensor:
        """Descriptors [B, D] of ground panoramas [B, 3, H, W], values 0 to 255."""
        descriptors: Tensor = self.ground(ground)
        return descriptors

    def embed_aerial(self, aerial: Tensor) -> Tensor:
        """Descriptors [B, D] of (mapped) aerial images [B, 3, H, W], values 0 to 255."""
        tower = self.ground if self.aerial is None else self.aerial
        descriptors: Tensor = tower(aerial)
        return descriptors

    def forward(self, ground: Tensor | None, aerial: Tensor | None) -> tuple[Tensor, ...]:
        """L2-normalised fp32 descriptors [B, D] of each view that there is; a learned scale [1]."""
        descriptors = [] if ground is None else [self.embed_ground(ground)]
        if aerial is not None:
            descriptors.append(self.embed_aerial(aerial))
        if self.log_scale is None:
            return tuple(descriptors)
        return (*descriptors, self.log_scale.float().exp())

    def depths(self) -> dict[str, int]:
        """Return the depth of the layer that each parameter belongs to, 0 next to the images."""
        towers = {"ground": self.ground, "aerial": self.aerial}
        depths = {
            f"{view}.{name}": depth
            for view, tower in towers.items()
            if tower is not None
            for name, depth in tower.depths().items()
        }
        return depths if self.log_scale is None else depths | {"log_scale": max(depths.values())}


def make_tower(config: HybridConfig | TimmConfig, sizes: tuple[Size, ...]) -> Tower:
    """Build one tower for images of the given sizes.

    Raises:
        InputError: the backbone does not take them.
    """
    if isinstance(config, TimmConfig):
        tower: Tower = TimmTower(config, sizes)
    else:
        if len(set(sizes)) > 1:
            (rows, columns), (other_rows, other_columns) = sizes
            raise InputError(
                f"model.shared needs equal sizes of both views, not {rows}x{columns} and "
                f"{other_rows}x{other_columns}, or a timm backbone"
            )
        tower = HybridTower(config, sizes[0])
    return tower.compile_layers() if config.compile else tower

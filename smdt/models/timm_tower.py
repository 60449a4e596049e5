"""Towers by name through timm: ConvNeXt, ViT, DINOv2, EfficientNet and what else it has.

Weights come from `init`, never from a hub. timm is imported where it is used: that takes seconds.

B batch, N places, C channels, H rows, W columns, D descriptor.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from data_shards.errors import InputError
from smdt.models.batch_norm import FixedBatchNorm, SampleNorm, replace_batch_norms
from smdt.models.normalisation import NORMALISATIONS, Normalisation
from smdt.models.pooling import make_pool
from smdt.models.tower import Size, Tower, TowersConfig


class TimmConfig(TowersConfig):
    """A network of timm's."""

    backbone: str
    """timm's name of it, such as `convnext_base`."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Probability of leaving out a block of the last layer; it falls to 0 at the first one."""
    batch_norm: Literal["group", "fixed"] = "group"
    """What stands for batch norms, whose statistics would make a step depend on how its batch is
    cut: group norms, or, with `init.weights`, norms with the statistics that these bring."""


class TimmTower(Tower):
    """Images of one or several sizes to descriptors.

    Args:
        config: which network.
        sizes: of all images that it will see.

    Raises:
        InputError: timm has no such network, or not with these sizes or switches.
    """

    def __init__(self, config: TimmConfig, sizes: Sequence[Size]) -> None:
        from timm import is_model, list_models
        from timm.models import get_pretrained_cfg

        name = config.backbone
        if not is_model(name):
            (nearest,) = difflib.get_close_matches(name, list_models(), n=1, cutoff=0.0)
            raise InputError(
                f"model.backbone: neither we nor timm have '{name}'; did you mean '{nearest}'?"
            )
        published: Any = get_pretrained_cfg(name)
        super().__init__(
            NORMALISATIONS[config.normalisation]
            if config.normalisation is not None
            else Normalisation(
                *([255 * v for v in values] for values in (published.mean, published.std))
            )
        )
        self.network = make_network(config, sizes)
        replace_batch_norms(self.network, _stand_in(config.batch_norm))
        self.descriptor_dim = int(self.network.head_hidden_size)
        has_class_token = getattr(self.network, "cls_token", None) is not None
        pooling = config.pooling or ("class_token" if has_class_token else "mean")
        if pooling == "class_token" and not has_class_token:
            raise InputError(f"model.pooling: {name} has no class token; choose mean or gem")
        self.pool = None if pooling == "class_token" else make_pool(pooling)

    def features(self, images: Tensor) -> Tensor:
        """Describe normalised images."""
        features = self.network.forward_features(images)
        if features.ndim == 4:
            return self._of_grid(features)
        prefix = int(self.network.num_prefix_tokens)
        vector_BD = features[:, 0] if self.pool is None else self.pool(features[:, prefix:])
        head: Tensor = self.network.forward_head(vector_BD.unsqueeze(1))
        return head.flatten(1)

    def _of_grid(self, features: Tensor) -> Tensor:
        """Pool [B, C, H, W], or what timm calls NHWC, and apply the network's own last norm."""
        assert self.pool is not None, "a class token was asked of what has none"
        last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        places_BNC = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
        vector_BC = self.pool(places_BNC)
        one_place = vector_BC[:, None, None, :] if last else vector_BC[:, :, None, None]
        head: Tensor = self.network.forward_head(one_place)
        return head.flatten(1)

    def depths(self) -> dict[str, int]:
        """As timm groups the network's layers."""
        from timm.models import group_parameters

        inside = group_parameters(self.network, self.network.group_matcher(), reverse=True)
        depths = {f"network.{name}": int(depth) for name, depth in inside.items()}
        last = max(depths.values())
        return {name: depths.get(name, last) for name, _ in self.named_parameters()}

    def compile_layers(self) -> Self:
        """One graph for the tower: its network is never called as a whole."""
        self.compile()
        return self


def make_network(config: TimmConfig, sizes: Sequence[Size]) -> Any:  # noqa: ANN401  (timm's own)
    """Build timm's network for images of the given sizes, without its classifier and pooling.

    Raises:
        InputError: it cannot be built so.
    """
    from timm import create_model
    from timm.models import get_pretrained_cfg_value

    name = config.backbone
    settings: dict[str, Any] = {}
    if get_pretrained_cfg_value(name, "fixed_input_size"):
        settings["img_size"] = sizes[0]
        if len(set(sizes)) > 1:
            settings["dynamic_img_size"] = True  # positions are interpolated for the other ones
    if config.drop_path:
        settings["drop_path_rate"] = config.drop_path
    try:
        network: Any = create_model(
            name, pretrained=False, num_classes=0, global_pool="", **settings
        )
        network.set_grad_checkpointing(config.gradient_checkpointing)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"model.backbone: timm cannot build {name} with {settings}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    for rows, columns in sizes:
        if patch is not None and (rows % patch[0] or columns % patch[1]):
            raise InputError(
                f"{name} does not divide an image of {rows}x{columns} into patches: choose a "
                f"height that is a multiple of {patch[0]} and a width that is one of {patch[1]}"
            )
    return network


def _stand_in(kind: Literal["group", "fixed"]) -> Callable[[nn.BatchNorm2d], nn.Module]:
    """Return what makes the module that stands for a batch norm."""
    from timm.layers.norm_act import BatchNormAct2d

    made = SampleNorm if kind == "group" else FixedBatchNorm

    def stand_in(norm: nn.BatchNorm2d) -> nn.Module:
        return made(norm, norm.act if isinstance(norm, BatchNormAct2d) else None)

    return stand_in

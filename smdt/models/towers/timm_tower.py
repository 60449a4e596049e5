"""Towers by name through timm: ConvNeXt, ViT, DINOv2, EfficientNet and what else it has.

Weights come from `init`, never from a hub. timm is imported where it is used: that takes seconds.

B batch, N places, C channels, H rows, W columns, D descriptor.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from data_shards.base.errors import InputError
from smdt.models.batch_norm import FixedBatchNorm, SampleNorm, replace_batch_norms
from smdt.models.mixed_precision import casting, computes_with_buffers
from smdt.models.normalisation import NORMALISATIONS, Normalisation
from smdt.models.towers.pooling import make_pool
from smdt.models.towers.tower import Size, Tower, TowersConfig
from smdt.models.trial import one_line, output_shape


class TimmConfig(TowersConfig):
    """A timm network."""

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

    Attributes:
        config: of the network.
        sizes: of the images; the first is what its positions are of.

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
                f"model.backbone: '{name}' is not a backbone of ours or of "
                f"timm; did you mean '{nearest}'?"
            )
        published: Any = get_pretrained_cfg(name)
        super().__init__(
            NORMALISATIONS[config.normalisation]
            if config.normalisation is not None
            else Normalisation(
                *([255 * v for v in values] for values in (published.mean, published.std))
            )
        )
        self._name = name
        self.config, self.sizes = config, tuple(sizes)
        self.network = make_network(config, sizes)
        norm = SampleNorm if config.batch_norm == "group" else FixedBatchNorm
        replace_batch_norms(self.network, lambda _, found: norm(found))
        self._require_none_of_a_batch()
        self._mixes = computes_with_buffers(self.network)
        has_class_token = getattr(self.network, "cls_token", None) is not None
        pooling = config.pooling or ("class_token" if has_class_token else "mean")
        if pooling == "class_token" and not has_class_token:
            raise InputError(f"model.pooling: {name} has no class token; choose mean or gem")
        self.pool = None if pooling == "class_token" else make_pool(pooling)
        self._prefix = int(getattr(self.network, "num_prefix_tokens", has_class_token))
        self._head_takes_a_place = True
        self.descriptor_dim = self._try(sizes)

    def features(self, images: Tensor) -> Tensor:
        """Describe normalised images."""
        with casting(images, self._mixes):
            features = self.network.forward_features(images)
            if not isinstance(features, Tensor) or features.ndim not in (3, 4):
                raise ValueError("its features are not a spatial map")
            return self._of_grid(features) if features.ndim == 4 else self._of_tokens(features)

    def _of_tokens(self, features: Tensor) -> Tensor:
        """Pool [B, N, C], class and other tokens first, and apply the network's own last norm."""
        places_BNC = features[:, self._prefix :]
        if self.pool is not None and places_BNC.shape[1] == 0:
            raise ValueError("its features are its class token alone: set model.pooling to it")
        vector_BC = features[:, 0] if self.pool is None else self.pool(places_BNC)
        return self._head(vector_BC, vector_BC[:, None])

    def _of_grid(self, features: Tensor) -> Tensor:
        """Pool [B, C, H, W], or what timm calls NHWC, and apply the network's own last norm."""
        if self.pool is None:
            raise ValueError("its class token is not among its features")
        last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        places_BNC = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
        vector_BC = self.pool(places_BNC)
        one_place = vector_BC[:, None, None, :] if last else vector_BC[:, :, None, None]
        return self._head(vector_BC, one_place)

    def _head(self, vector_BC: Tensor, one_place: Tensor) -> Tensor:
        """Apply the layers after the network's pool to the input that they take: vector or map."""
        head: Tensor = self.network.forward_head(
            one_place if self._head_takes_a_place else vector_BC
        )
        return head.flatten(1)

    def _require_none_of_a_batch(self) -> None:
        """Check that no statistics of a batch are left.

        Raises:
            InputError: there are some.
        """
        for path, part in self.network.named_modules():
            if not isinstance(part, FixedBatchNorm) and hasattr(part, "running_var"):
                raise InputError(
                    f"model.backbone: {self._name} can't be trained here: {path} is a "
                    f"{type(part).__name__}, which keeps statistics of batches; choose another"
                )

    def _try(self, sizes: Sequence[Size]) -> int:
        """Embed an image of each size, and find what the network's own head takes.

        Returns:
            D.

        Raises:
            InputError: the network does not embed them.
        """
        faults: list[Exception] = []
        for self._head_takes_a_place in (True, False):
            try:
                shapes = [output_shape(self, partial(_embed_blank, size=size)) for size in sizes]
                if len({*shapes}) == 1 and len(shapes[0]) == 2:
                    return shapes[0][1]
                raise ValueError(f"its head makes {', '.join(map(str, shapes))} of 2 images")
            except Exception as error:  # timm's networks raise whatever a size leads them to
                faults.append(error)
        seen = " and ".join("x".join(map(str, size)) for size in dict.fromkeys(sizes))
        raise InputError(
            f"model.backbone: {self._name} can't embed images of {seen}: {one_line(faults[0])}"
        )

    def depths(self) -> dict[str, int]:
        """As timm groups the network's layers."""
        from timm.models import group_parameters

        try:
            inside = group_parameters(self.network, self.network.group_matcher(), reverse=True)
        except (AttributeError, TypeError, NotImplementedError) as error:
            raise InputError(
                f"optimizer.layer_decay: timm does not say which layers {self._name} has; "
                "leave it at 1"
            ) from error
        depths = {f"network.{name}": int(depth) for name, depth in inside.items()}
        last = max(depths.values())
        return {name: depths.get(name, last) for name, _ in self.named_parameters()}

    def compile_layers(self) -> Self:
        """One graph for the tower: its network is never called as a whole."""
        self.compile()
        return self


def _create(name: str, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401  (timm's own)
    """Return timm's network, or what it raises: networks raise whatever a setting leads them to."""
    from timm import create_model

    try:
        return create_model(name, pretrained=False, num_classes=0, **settings)
    except Exception as error:
        return error


def make_network(config: TimmConfig, sizes: Sequence[Size]) -> Any:  # noqa: ANN401  (timm's own)
    """Build timm's network for images of the given sizes, without its classifier and pooling.

    Raises:
        InputError: it cannot be built so.
    """
    from timm.models import get_pretrained_cfg_value

    name = config.backbone
    settings: dict[str, Any] = {}
    if get_pretrained_cfg_value(name, "fixed_input_size"):
        settings["img_size"] = sizes[0]
        if len(set(sizes)) > 1:
            settings["dynamic_img_size"] = True  # positions are interpolated for the other ones
    if config.drop_path:
        settings["drop_path_rate"] = config.drop_path
    network = _create(name, {"global_pool": "", **settings})  # the tower pools
    if isinstance(network, Exception):
        network = _create(name, settings)  # some networks have no such setting
    if isinstance(network, Exception):
        raise InputError(
            f"model.backbone: timm cannot build {name} with {settings}: {one_line(network)}"
        ) from network
    if not config.drop_path:  # which some networks, such as Swin, have by themselves
        for part in network.modules():
            if hasattr(part, "drop_prob"):
                part.drop_prob = 0.0
    if config.gradient_checkpointing:
        try:
            network.set_grad_checkpointing(True)
        except Exception as error:
            raise InputError(
                f"model.gradient_checkpointing: timm has none for {name}; set it to false"
            ) from error
    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    if getattr(getattr(embed, "proj", None), "stride", patch) != patch:
        patch = None  # patches that overlap take images of any size
    for rows, columns in sizes:
        if patch is not None and (rows % patch[0] or columns % patch[1]):
            raise InputError(
                f"{name} does not divide an image of {rows}x{columns} into patches: choose a "
                f"height that is a multiple of {patch[0]} and a width that is one of {patch[1]}"
            )
    return network


def _embed_blank(tower: TimmTower, device: torch.device, *, size: Size) -> Tensor:
    return tower.features(torch.zeros(2, 3, *size, device=device))

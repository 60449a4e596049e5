"""Parameter groups: weight decay and learning rates (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from data_shards.base.errors import InputError


@runtime_checkable
class HasLayerDepths(Protocol):
    """A module that declares the depth of its layers."""

    def depths(self) -> Mapping[str, int]:
        """Return the depth of the layer that each parameter belongs to, 0 next to the image."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are updated alike.

    Attributes:
        parameters: at least one.
        weight_decay: of them.
        rate_scale: what the learning rate is multiplied by for them.
    """

    parameters: list[nn.Parameter]
    weight_decay: float
    rate_scale: float


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[ParameterGroup]:
    """Group a module's parameters: matrices and kernels decay, vectors and tokens do not.

    With `layer_decay` the layer next to the descriptor learns at the full rate, and each layer
    below it at this times the rate of the one above.

    Args:
        module: what is trained.
        weight_decay: of what decays.
        layer_decay: above 0, at most 1; 1 makes no difference between layers.

    Raises:
        InputError: `layer_decay` is below 1 and the module does not know its layers.
    """
    names = {name: p for name, p in module.named_parameters() if p.requires_grad}
    depths: Mapping[str, int] = dict.fromkeys(names, 0)
    if layer_decay < 1:
        if not isinstance(module, HasLayerDepths):
            raise InputError(
                "optimizer.layer_decay is for the retrieval stage, whose towers declare "
                "layer depths: leave it at 1"
            )
        depths = module.depths()
    last = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in names.items():
        decays = parameter.squeeze().ndim >= 2
        groups.setdefault((-depths[name], not decays), []).append(parameter)
    return [
        ParameterGroup(parameters, 0.0 if plain else weight_decay, layer_decay ** (last + depth))
        for (depth, plain), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]

"""What stands for a batch norm where a step must not depend on how its batch is cut.

Statistics of a batch would make it so: a trained norm keeps those that it has, an untrained one
becomes a group norm.

B batch, C channels, H rows, W columns.
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

GROUP_CHANNELS = 16
"""Of a group norm, or the largest common divisor."""


class FixedBatchNorm(nn.BatchNorm2d):
    """A batch norm that keeps the statistics it has, in fp32 whatever the weights are in.

    Args:
        norm: the norm whose place it takes, and whose parameters and statistics it has.
        activation: what follows.
    """

    def __init__(self, norm: nn.BatchNorm2d, activation: nn.Module | None = None) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.load_state_dict(norm.state_dict())
        self.activation = activation or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Normalise [B, C, H, W]; the result has the images' dtype."""
        wide = F.batch_norm(
            images.float(),
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            eps=self.eps,
        )
        result: Tensor = self.activation(wide.to(images.dtype))
        return result


class SampleNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018): the statistics of each sample for itself.

    Args:
        norm: the norm whose place it takes.
        activation: what follows.
    """

    def __init__(self, norm: nn.BatchNorm2d, activation: nn.Module | None = None) -> None:
        channels = norm.num_features
        super().__init__(channels // math.gcd(GROUP_CHANNELS, channels), channels, norm.eps)
        self.activation = activation or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        result: Tensor = self.activation(super().forward(images))
        return result


def replace_batch_norms(module: nn.Module, new: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Replace every batch norm below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, new(child))
        else:
            replace_batch_norms(child, new)

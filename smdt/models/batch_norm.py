"""Replacements of batch norms, for steps that must not depend on how a batch is split.

Statistics of a batch would make it so: a trained norm keeps those that it has, an untrained one
becomes a group norm.

B batch, C channels.
"""

import math
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

GROUP_CHANNELS = 16
"""Channels of a group in a group norm, or the largest common divisor."""


class FixedBatchNorm(nn.Module):
    """A batch norm that keeps the statistics it has, in fp32 whatever the weights are in.

    Args:
        norm: the norm whose place it takes, and whose parameters, activation and, if it has any,
            statistics it gets.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: "BatchNorm | SampleNorm") -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        channels = norm.num_channels if isinstance(norm, SampleNorm) else norm.num_features
        made = {
            "running_mean": torch.zeros(channels),
            "running_var": torch.ones(channels),
            "num_batches_tracked": torch.tensor(0),
        }
        for name, value in made.items():
            there = getattr(norm, name, None)
            self.register_buffer(name, value if there is None else there)
        self.activation = _activation(norm)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...]; the result has the input's dtype."""
        wide = F.batch_norm(
            x.float(),
            self.running_mean,
            self.running_var,
            None if self.weight is None else self.weight.float(),
            None if self.bias is None else self.bias.float(),
            eps=self.eps,
        )
        result: Tensor = self.activation(wide.to(x.dtype))
        return result


class SampleNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018): the statistics of each sample for itself.

    Args:
        norm: the norm whose place it takes, and whose activation it has.
    """

    def __init__(self, norm: BatchNorm) -> None:
        channels = norm.num_features
        groups = channels // math.gcd(GROUP_CHANNELS, channels)
        super().__init__(groups, channels, norm.eps, affine=norm.affine)
        self.activation = _activation(norm)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...]."""
        # A group of one value would always be normalised to zero.
        groups = 1 if x[0].numel() == self.num_groups else self.num_groups
        wide = F.group_norm(x, groups, self.weight, self.bias, self.eps)
        result: Tensor = self.activation(wide)
        return result


def replace_batch_norms(module: nn.Module, new: Callable[[str, BatchNorm], nn.Module]) -> None:
    """Replace every batch norm below `module`, of whatever class.

    Args:
        module: is changed in place.
        new: a norm's path and the norm to what takes its place.
    """
    made: dict[nn.Module, nn.Module] = {}
    for path, part in [*module.named_modules(remove_duplicate=False)]:
        if isinstance(part, BatchNorm):
            if part not in made:
                made[part] = new(path, part)
            module.set_submodule(path, made[part])


def keep_statistics(module: nn.Module, names: Collection[str]) -> None:
    """Put a fixed batch norm in the place of each sample norm that weights have statistics for.

    Args:
        module: is changed in place.
        names: of the weights.
    """
    for path, part in [*module.named_modules()]:
        if isinstance(part, SampleNorm) and f"{path}.running_mean" in names:
            module.set_submodule(path, FixedBatchNorm(part))


def _activation(norm: nn.Module) -> nn.Module:
    """Return the layers that a timm norm applies after normalising: dropout and activation."""
    if isinstance(norm, SampleNorm):
        return norm.activation
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    there = [part for part in parts if part is not None and not isinstance(part, nn.Identity)]
    return nn.Sequential(*there)

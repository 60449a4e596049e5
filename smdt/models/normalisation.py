"""The scale of images that a network expects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation that make it: red, green, blue, 0 to 255."""

    mean: Sequence[float]
    std: Sequence[float]


NORMALISATIONS: Mapping[Literal["half", "imagenet"], Normalisation] = {
    "half": Normalisation((127.5,) * 3, (127.5,) * 3),
    "imagenet": Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""`half` scales to -1 to 1, `imagenet` to mean 0 and deviation 1 over ImageNet."""

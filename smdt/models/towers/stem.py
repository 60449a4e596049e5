"""Convolutional stems of the hybrid Transformer: images to features at output stride 16.

`ResNetV2Stem` is the paper's: weight-standardised convolutions and group norm (Kolesnikov et al.
2020, "Big Transfer", section 2.3; ViT's hybrid, Dosovitskiy et al. 2021, section 3.1), padded as
TensorFlow's SAME, as the published R50+ViT weights expect it. `ConvStem` is light, for CPUs.

B batch, C channels, H rows, W columns.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from smdt.models.towers import recompute

STRIDE = 16
NORM_EPSILON = 1e-6
VARIANCE_EPSILON = 1e-10
"""Epsilon of a filter's variance; its root is what Google's code adds to the standard deviation."""


class ConvStemConfig(BaseModel):
    """Sizes of the light stem."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["conv"] = "conv"
    """Four plain convolutions."""
    width: int = Field(default=32, ge=1)
    """Channels after the first convolution; the next ones have 2, 2 and 4 times as many."""
    groups: int = Field(default=8, ge=1)
    """Groups of every group norm; divides `width`."""

    @property
    def channels(self) -> int:
        """Channels of the stem's output."""
        return self.width * 4


class ResNetStemConfig(BaseModel):
    """Sizes of the ResNetV2 stem; the defaults are those of R50-ViT."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["resnet"] = "resnet"
    """Bottleneck blocks."""
    width: int = Field(default=64, ge=1)
    """Channels after the root convolution; the three stages have 4, 8 and 16 times as many."""
    blocks: tuple[int, int, int] = (3, 4, 9)
    """Bottleneck blocks of the stages at strides 4, 8 and 16."""
    groups: int = Field(default=32, ge=1)
    """Groups of every group norm; divides `width`."""

    @property
    def channels(self) -> int:
        """Channels of the stem's output."""
        return self.width * 16


StemConfig = Annotated[ConvStemConfig | ResNetStemConfig, Field(discriminator="kind")]


def make_stem(
    config: ConvStemConfig | ResNetStemConfig, gradient_checkpointing: bool = False
) -> nn.Module:
    """Build the stem that a configuration describes: [B, 3, H, W] to [B, C, H / 16, W / 16]."""
    if isinstance(config, ConvStemConfig):
        return ConvStem(config)
    return ResNetV2Stem(config, gradient_checkpointing)


class ConvStem(nn.Sequential):
    """Four convolutions at strides 4, 8, 8 and 16; group norm and ReLU between them.

    The last one is plain. With norm and ReLU after it the towers learned more slowly on the
    synthetic world; why has not been shown.
    """

    def __init__(self, config: ConvStemConfig) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for factor, kernel, stride in ((1, 7, 4), (2, 3, 2), (2, 3, 1)):
            outputs = factor * config.width
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
                nn.GroupNorm(config.groups, outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        super().__init__(*layers, nn.Conv2d(inputs, config.channels, 2, 2))


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pad [B, C, H, W] for ceil(H / stride) output rows, the extra row at the end."""
    rows, columns = (
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    )
    if rows == columns == 0:
        return x
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class StandardisedConv(nn.Conv2d):
    """A convolution without bias whose filters have mean 0 and variance 1 (Qiao et al. 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W] with SAME padding."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        # A layer norm without its affine part is what is wanted, in one pass and with fp32 sums.
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=VARIANCE_EPSILON)
        return F.conv2d(same_padding(x, kernel, stride), weight, stride=self.stride)


class Shortcut(nn.Module):
    """A 1x1 convolution and a norm, where a block changes the size of what it gets."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = StandardisedConv(inputs, outputs, 1, stride)
        self.norm = nn.GroupNorm(groups, outputs, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        shortcut: Tensor = self.norm(self.conv(x))
        return shortcut


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; ReLU after the sum."""

    def __init__(self, inputs: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = StandardisedConv(inputs, width, 1)
        self.norm1 = nn.GroupNorm(groups, width, eps=NORM_EPSILON)
        self.conv2 = StandardisedConv(width, width, 3, stride)
        self.norm2 = nn.GroupNorm(groups, width, eps=NORM_EPSILON)
        self.conv3 = StandardisedConv(width, outputs, 1)
        self.norm3 = nn.GroupNorm(groups, outputs, eps=NORM_EPSILON)
        nn.init.zeros_(self.norm3.weight)  # a new block starts as its shortcut
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Shortcut(inputs, outputs, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 4 * width, H / stride, W / stride]."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        return F.relu(self.shortcut(x) + y, inplace=True)


class ResNetV2Stem(nn.Module):
    """Images [B, 3, H, W] to features [B, 16 * width, H / 16, W / 16]."""

    def __init__(self, config: ResNetStemConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self._recompute = gradient_checkpointing
        self.root = StandardisedConv(3, config.width, 7, stride=2)
        self.root_norm = nn.GroupNorm(config.groups, config.width, eps=NORM_EPSILON)
        self.stages = nn.ModuleList()
        inputs = config.width
        for level, count in enumerate(config.blocks):
            width = config.width * 2**level
            blocks = nn.ModuleList()
            for block in range(count):
                stride = 2 if level > 0 and block == 0 else 1
                blocks.append(Bottleneck(inputs, width, stride, config.groups))
                inputs = 4 * width
            self.stages.append(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Features at stride 16 of images in the parameters' dtype."""
        x = F.relu(self.root_norm(self.root(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)  # SAME: the last window reaches over the edge
        for stage in self.stages:
            for block in stage.children():
                x = recompute.call(block, x, recompute=self._recompute)
        return x

"""The GAN of docs/method.md as a plain PyTorch loop: textbook layers, one process, whole batches.

What `benchmarks.gan_step` measures against, and what the tests compare the stage with.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smdt.data.loader import Batch
from smdt.models.gan.discriminator import DiscriminatorOutput
from smdt.models.gan.dual_cgan import Discriminators, Generators
from smdt.models.gan.layers import DoublingConv2d, HalvingConv2d
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.stage import AlignmentStage, Views


class PooledConv2d(nn.Conv2d):
    """A convolution, then an average over 2x2 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outputs, H / 2, W / 2]."""
        return F.avg_pool2d(super().forward(x), 2)


class UpsampledConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outputs, 2H, 2W]."""
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


def textbook(net: nn.Module) -> nn.Module:
    """Return a copy of a network, of the layers that its description names, with its weights."""
    copy = deepcopy(net)
    for parent in list(copy.modules()):
        for name, layer in list(parent.named_children()):
            setattr(parent, name, _textbook_layer(layer))
    return copy


def _textbook_layer(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.GroupNorm):
        assert layer.num_groups == layer.num_channels
        return nn.InstanceNorm2d(layer.num_channels)
    conv: nn.Conv2d
    if isinstance(layer, HalvingConv2d):
        conv = PooledConv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    elif isinstance(layer, DoublingConv2d):
        conv = UpsampledConv2d(
            layer.in_channels, layer.out_channels, 3, padding=1, padding_mode="reflect"
        )
    else:
        return layer
    conv.weight, conv.bias = layer.weight, layer.bias
    return conv


class PlainGan:
    """Copies of a stage's networks, with Adam and the losses written out.

    Args:
        stage: whose networks are copied, and which prepares the images.
        config: of the run; no augmentation.
        copy: how they are copied, by default into textbook layers.
    """

    def __init__(
        self,
        stage: AlignmentStage,
        config: AlignmentConfig,
        copy: Callable[[nn.Module], nn.Module] = textbook,
    ) -> None:
        self._stage = stage
        self.generators = cast(Generators, copy(stage.generators))
        self.discriminators = cast(Discriminators, copy(stage.discriminators))
        self._loops = config.model.feedback_loops
        self._chain = config.model.arrangement == "chain"
        self._weights = config.loss
        adam = config.optimizer
        self._g_adam, self._d_adam = (
            torch.optim.Adam(
                net.parameters(), lr=adam.learning_rate, betas=adam.betas, eps=adam.epsilon
            )
            for net in (self.generators, self.discriminators)
        )

    def step(self, batch: Batch) -> dict[str, float]:
        """One step of the discriminators, one of the generators; return the losses."""
        views = self._stage.inputs(batch, slice(0, len(batch.sample_ids)))
        # With feedback the generators run again after the step of the discriminators.
        made = self._generated(views.aerial)
        self._d_adam.zero_grad()
        d_loss = torch.zeros(())
        for seg, ground in made:
            d1 = self._scores(views, seg.detach(), ground.detach())
            of_true = (cross_entropy(d1["seg"], 1) + cross_entropy(d1["ground"], 1)) / 2
            of_made = (cross_entropy(d1["made seg"], 0) + cross_entropy(d1["made ground"], 0)) / 2
            d_loss = d_loss + (of_true + of_made) / self._loops
        torch.autograd.backward(d_loss)
        self._d_adam.step()

        self.discriminators.requires_grad_(False)
        self._g_adam.zero_grad()
        g_loss = l1_seg = l1_image = torch.zeros(())
        for seg, ground in made if self._loops == 1 else self._generated(views.aerial):
            now = self._scores(views, seg, ground)
            adversarial = cross_entropy(now["made seg"], 1) + cross_entropy(now["made ground"], 1)
            distances = []
            for one, true, classes in zip(seg, views.segmentation, views.classes, strict=True):
                distances.append((one - true).abs()[:, classes != 255].mean())
            l1_seg = l1_seg + torch.stack(distances).mean() / self._loops
            l1_image = l1_image + (ground - views.ground).abs().mean() / self._loops
            g_loss = g_loss + adversarial / self._loops
        weights = self._weights
        g_loss = g_loss + weights.l1_segmentation * l1_seg + weights.l1_image * l1_image
        torch.autograd.backward(g_loss)
        self._g_adam.step()
        self.discriminators.requires_grad_(True)
        return {
            "loss": float(g_loss.detach()),
            "discriminators": float(d_loss.detach()),
            "l1_segmentation": float(l1_seg.detach()),
            "l1_image": float(l1_image.detach()),
        }

    def _generated(self, aerial: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the generated images of each loop."""
        made: list[tuple[Tensor, Tensor]] = [self.generators(aerial)]
        while len(made) < self._loops:
            features = self.discriminators.feedback(aerial, *(x.detach() for x in made[-1]))
            made.append(self.generators(aerial, *features))
        return made

    def _scores(self, views: Views, seg: Tensor, ground: Tensor) -> dict[str, list[Tensor]]:
        """`real + <embed, true partner's embed>` of four pairs, judged one by one."""
        condition = seg if self._chain else views.aerial
        dtype = next(self.discriminators.parameters()).dtype

        def d1(image: Tensor) -> DiscriminatorOutput:
            pair = torch.cat([views.aerial, image], dim=1).to(dtype)
            return DiscriminatorOutput(*self.discriminators.of_segmentation(pair))

        def d2(image: Tensor) -> DiscriminatorOutput:
            pair = torch.cat([condition, image], dim=1).to(dtype)
            return DiscriminatorOutput(*self.discriminators.of_ground(pair))

        true_seg, true_ground = d1(views.segmentation), d2(views.ground)
        return {
            "seg": tied(true_seg, true_ground),
            "ground": tied(true_ground, true_seg),
            "made seg": tied(d1(seg), true_ground),
            "made ground": tied(d2(ground), true_seg),
        }


def tied(judged: DiscriminatorOutput, partner: DiscriminatorOutput) -> list[Tensor]:
    """`real + <embedding, partner's embedding>` at each scale, [B, h, w]."""
    pairs = zip(judged.real, judged.embedding, partner.embedding, strict=True)
    return [real[:, 0] + torch.einsum("behw,behw->bhw", a, b) for real, a, b in pairs]


def cross_entropy(scores: list[Tensor], label: int) -> Tensor:
    """Mean over scales."""
    target = float(label)
    losses = [F.binary_cross_entropy_with_logits(s, torch.full_like(s, target)) for s in scores]
    return torch.stack(losses).mean()

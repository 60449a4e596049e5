"""Alignment: the dual conditional GAN, from mapped aerial images to ground images.

A step updates the discriminators on what the generators make of the whole global batch, then the
generators against the new discriminators. Every loss is a mean over samples, so the chunks of all
ranks add up to the step of the global batch, whatever their number.

B samples of the global batch, C channels, H rows, W columns.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards.format import manifest
from smdt.data.loader import Batch
from smdt.data.randomness import sample_seed
from smdt.data.split import Split
from smdt.evaluation.alignment import AlignmentScores
from smdt.geometry.augment import draw
from smdt.geometry.mapping import PanoramaProjection
from smdt.geometry.view import normalise
from smdt.losses.adversarial import local_adversarial_loss, local_l1_loss
from smdt.models.gan.dual_cgan import Discriminators, Generators, Scores
from smdt.semantics.augment import draw_class_masking
from smdt.semantics.palette import known, to_classes, to_colours
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.evaluation import missing_samples, open_evaluation_split
from smdt.stages.mapped import mapped, require_mappable, warn_of_elevations
from smdt.stages.panoramas import class_maps, ground_images
from smdt.training.deepspeed.engine import Engine
from smdt.training.loop.stage import Evaluation, EvaluationData, Stage, StepContext, equal_slices
from smdt.training.loop.utilization import forward_flops

GENERATORS = "generators"
DISCRIMINATORS = "discriminators"

TERMS = ("loss", "discriminators", "adversarial", "l1_segmentation", "l1_image")
"""Losses of a step: `loss` is the generators', with the weighted sum of the last three."""

Generated = tuple[Tensor, ...]
"""S_g' and I_g', float32 [n, 3, H, W] in [-1, 1]."""


@dataclass(frozen=True)
class Views:
    """Inputs of a step: panoramas of one size.

    Attributes:
        aerial: I_a, float32 [n, 3, H, W] in [-1, 1].
        ground: I, the same.
        classes: class ids uint8 [n, H, W].
    """

    aerial: Tensor
    ground: Tensor
    classes: Tensor

    @property
    def segmentation(self) -> Tensor:
        """S: the classes in palette colours, float32 [n, 3, H, W] in [-1, 1]."""
        return to_colours(self.classes)


class AlignmentStage(Stage):
    """Mapped aerial image to ground segmentation and ground image."""

    name = "alignment"
    views = ("ground", "aerial", "seg")

    def __init__(self, config: AlignmentConfig) -> None:
        self._config = config
        self._loops = config.model.feedback_loops
        self.mapping = PanoramaProjection(config.geometry, *config.geometry.panorama_size)
        self.generators = Generators(config.model)
        self.discriminators = Discriminators(config.model)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return both generators as one module, both discriminators as another."""
        return {GENERATORS: self.generators, DISCRIMINATORS: self.discriminators}

    def flops_per_sample(self) -> float:
        """Count the generators' and the discriminators' work in both steps of every loop.

        The generators go forward and backward. So do the discriminators in their own step; in the
        generators' they go forward, and back to the generated half of their inputs alone. With
        feedback the generators run once more, and in each step the discriminators see the
        generated half before all loops but the first.
        """
        blank = torch.zeros(1, 3, *self._config.geometry.panorama_size)
        features = self.discriminators.feedback(blank, blank, blank) if self._loops > 1 else ()
        first = forward_flops(lambda: self.generators(blank))
        later = forward_flops(lambda: self.generators(blank, *features))
        generators = first + (self._loops - 1) * later
        discriminators = forward_flops(lambda: self.discriminators(*[blank] * 5))
        again = 0.0 if self._loops == 1 else generators + (self._loops - 1) * discriminators
        return 3.0 * generators + (3.0 + 1.5) * self._loops * discriminators + again

    def require(self, split: Split) -> None:
        """Check that its tiles can be mapped."""
        require_mappable(self._config.geometry, split)
        warn_of_elevations(self._config.geometry, split)

    def require_shards(self, data: EvaluationData) -> None:
        """Check also the galleries, which `smdt align` will ask of the generators."""
        super().require_shards(data)
        for name, entry in manifest.load(data.shards).splits.items():
            if entry.kind == "aerial":
                self.require(Split.open(data.shards, name, data.cache))

    def _panoramas(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return some rows of a batch as panoramas of one size, north in the middle.

        Returns:
            Mapped aerial images (float32) and ground images (uint8), [rows, 3, H, W], values 0 to
            255, and class ids uint8 [rows, H, W].
        """
        size = self._config.geometry.panorama_size
        aerial = mapped(self.mapping, batch, rows)
        return aerial, ground_images(batch, rows, size), class_maps(batch, rows, size)

    def inputs(self, batch: Batch, rows: slice) -> Views:
        """Return some rows of a batch as the networks see them."""
        aerial, ground, classes = self._panoramas(batch, rows)
        return Views(normalise(aerial), normalise(ground), classes)

    def augmented(self, batch: Batch, rows: slice, seed: int) -> Views:
        """Return `inputs` painted, turned and mirrored as drawn for each pair in this epoch."""
        ids = batch.sample_ids[rows]
        drawn = draw(self._config.augment, [sample_seed(seed, batch.epoch, int(i)) for i in ids])
        painted = draw_class_masking(self._config.semantics, seed, batch.epoch, ids)
        aerial, ground, classes = self._panoramas(batch, rows)
        ground = painted.apply(ground, classes)
        return Views(
            aerial=drawn.apply(normalise(aerial)),
            ground=drawn.apply(normalise(ground)),
            classes=drawn.apply(classes.unsqueeze(1)).squeeze(1),
        )

    def step(
        self, engines: Mapping[str, Engine], batch: Batch, context: StepContext
    ) -> Mapping[str, Tensor]:
        """Make one step of the discriminators, then one of the generators."""
        generators, discriminators = engines[GENERATORS], engines[DISCRIMINATORS]
        rows = equal_slices(len(batch.sample_ids), context.chunks)
        chunks = [self.augmented(batch, part, context.seed) for part in rows]
        global_batch = context.world_size * len(batch.sample_ids)

        # A single chunk keeps its graph for the generators' step. With feedback the generators run
        # again: their input is the features of the discriminators that score them.
        keep = context.chunks == 1 and self._loops == 1
        kept = [generators.forward(chunks[0].aerial)] if keep else None
        critic = discriminators.module
        losses = torch.zeros(len(TERMS), device=context.device)
        for views in chunks:
            for made in kept or self._without_graph(generators.module, critic, views.aerial):
                share = self._discriminator_loss(discriminators.forward, views, made, global_batch)
                discriminators.backward(share)
                losses[TERMS.index("discriminators")] += share.detach()
        discriminators.step(context.rate_factor)

        with frozen(critic):
            for views in chunks:
                shares = []
                for made in kept or self._generate(generators.forward, critic, views.aerial):
                    share, terms = self._generator_loss(critic, views, made, global_batch)
                    shares.append(share)
                    losses += terms
                # One backward for all loops: with one each, feedback blocks that only a later loop
                # reaches got wrong gradients on ZeRO 3.
                generators.backward(torch.stack(shares).sum())
        generators.step(context.rate_factor)
        return dict(zip(TERMS, losses.unbind(), strict=True))

    def _generate(
        self, generators: Callable[..., Generated], critic: nn.Module, aerial: Tensor
    ) -> Iterator[Generated]:
        """Yield what the generators make in each feedback loop."""
        assert isinstance(critic, Discriminators)
        features: tuple[Tensor, ...] = ()
        for loop in range(self._loops):
            made = generators(aerial, *features)
            yield made
            if loop + 1 < self._loops:
                features = critic.feedback(aerial, *made)

    @torch.no_grad()
    def _without_graph(
        self, generators: nn.Module, critic: nn.Module, aerial: Tensor
    ) -> list[Generated]:
        return list(self._generate(generators, critic, aerial))

    def _discriminator_loss(
        self,
        discriminators: Callable[..., tuple[Tensor, ...]],
        views: Views,
        made: Generated,
        global_batch: int,
    ) -> Tensor:
        """Share of the discriminators' loss: for each, half of the true and the generated pairs."""
        segmentation, ground = (image.detach() for image in made)
        scores = Scores.of(
            discriminators(views.aerial, views.segmentation, views.ground, segmentation, ground)
        )
        true = [scores.true_segmentation, scores.true_ground]
        generated = [scores.generated_segmentation, scores.generated_ground]
        shares = [local_adversarial_loss(pair, True, global_batch) for pair in true]
        shares += [local_adversarial_loss(pair, False, global_batch) for pair in generated]
        return 0.5 * torch.stack(shares).sum() / self._loops

    def _generator_loss(
        self, critic: nn.Module, views: Views, made: Generated, global_batch: int
    ) -> tuple[Tensor, Tensor]:
        """Share of the generators' loss, with a graph, and of all `TERMS`, without."""
        segmentation, ground = made
        true_segmentation = views.segmentation
        # The module, not the engine: to DeepSpeed a second forward would be that of the next step.
        scores = Scores.of(critic(views.aerial, true_segmentation, views.ground, *made))
        adversarial = local_adversarial_loss(scores.generated_segmentation, True, global_batch)
        adversarial = adversarial + local_adversarial_loss(
            scores.generated_ground, True, global_batch
        )
        l1_segmentation = local_l1_loss(
            segmentation, true_segmentation, global_batch, known(views.classes)
        )
        l1_image = local_l1_loss(ground, views.ground, global_batch)
        weights = self._config.loss
        share = (
            adversarial + weights.l1_segmentation * l1_segmentation + weights.l1_image * l1_image
        )
        terms = torch.stack(
            [share, torch.zeros_like(share), adversarial, l1_segmentation, l1_image]
        )
        return share / self._loops, terms.detach() / self._loops

    @torch.no_grad()
    def evaluate(self, context: StepContext, data: EvaluationData) -> Evaluation:
        """Compare what is generated from the split's aerial images with its ground images."""
        split, loader = open_evaluation_split(self.views, context, data)
        self.generators.eval()
        size = self._config.geometry.panorama_size
        measured = AlignmentScores(size, context.device, data.panogan_compat)
        batches = 0
        for batch in loader:
            batches += 1
            views = self.inputs(batch, slice(0, len(batch.sample_ids)))
            segmentation, ground = self.align(views.aerial)
            measured.update(ground, views.ground, to_classes(segmentation), views.classes)
        # Under ZeRO 3 a forward is a collective: ranks with fewer batches join in empty-handed.
        blank = torch.zeros(1, 3, *size, device=context.device)
        for _ in range(loader.longest - batches):
            self.align(blank)
        scores, count = measured.compute()
        details = {
            "split": data.split,
            "shards": str(data.shards),
            "pairs": count,
            "missing": missing_samples(split, count, data.max_missing),
        }
        return Evaluation(data.split, scores, details)

    @torch.no_grad()
    def align(self, aerial: Tensor) -> Generated:
        """Return what the last loop makes of mapped aerial images [n, 3, H, W] in [-1, 1]."""
        return self._without_graph(self.generators, self.discriminators, aerial)[-1]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Take a module's parameters out of every graph that is made in the block."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)

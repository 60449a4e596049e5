"""Retrieval: both towers, one loss over the global batch, recall on a held-out split.

The step is the same function of the global batch for every number of ranks and chunks: descriptors
are gathered from all ranks, each rank takes its rows of the one loss, and the gradient with respect
to its own descriptors is carried through the towers chunk by chunk (gradient caching, Gao et al.
2021).

B samples of the global batch, b of this rank's share, D descriptor.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from smdt.data.loader import Batch
from smdt.data.neighbours import NO_NEIGHBOUR
from smdt.data.order import evaluation_slice
from smdt.data.randomness import NO_EPOCH, chunk_seed, field_of_view_seed, sample_seed
from smdt.data.split import Split
from smdt.evaluation.outcomes import recall_curve
from smdt.evaluation.protocol import HIT_RATE
from smdt.evaluation.recall import Piece, nearest_at_other_places, recalls
from smdt.geometry.augment import Draw, draw, even_turns
from smdt.geometry.field_of_view import draw_field_of_view
from smdt.losses.contrastive import InfoNceConfig, gathered_contrastive_loss
from smdt.models.towers.two_tower import TwoTower
from smdt.semantics.augment import draw_class_masking
from smdt.stages.evaluation import make_rank_loader
from smdt.stages.panoramas import class_maps, ground_images
from smdt.stages.retrieval.aerial import aerial_images, aerial_view
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.outcomes import outcomes
from smdt.stages.retrieval.ranking import choose_protocol, embed, open_splits, retrievals, search
from smdt.training.deepspeed.engine import Engine
from smdt.training.loop.stage import Evaluation, EvaluationData, Stage, StepContext, equal_slices
from smdt.training.loop.utilization import forward_flops
from smdt.training.ranks.gathering import pieces

ENGINE = "two_tower"
GROUND = "ground"


class RetrievalStage(Stage):
    """Ground panorama and aerial image to one descriptor space."""

    name = "retrieval"

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config
        self.views = GROUND, aerial_view(config)
        loss = config.loss
        temperature = loss.temperature if isinstance(loss, InfoNceConfig) else None
        sizes = config.geometry.panorama_size, config.aerial_size
        self.towers = TwoTower(config.model, *sizes, temperature)
        # After the towers, whose first weights are then the same whatever they see.
        self._aerial = aerial_images(config)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return both towers as one module."""
        return {ENGINE: self.towers}

    def flops_per_sample(self) -> float:
        """Count both towers, forward and backward, but no frozen generators before them."""
        self.towers.eval()
        ground = torch.zeros(1, 3, *self._config.geometry.panorama_size)
        aerial = torch.zeros(1, 3, *self._config.aerial_size)
        counted = 3.0 * forward_flops(lambda: self.towers(ground, aerial))
        # Some networks keep tables that they compute of their weights until they train again.
        self.towers.train()
        return counted

    def images(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """Return what the towers see of some rows of a batch.

        Returns:
            Ground and aerial images, [rows, 3, H, W] each, values 0 to 255, uint8 or float32, as
            the towers take them.
        """
        return self._ground(batch, rows), self._aerial(batch, rows)

    def _ground(self, batch: Batch, rows: slice) -> Tensor:
        return ground_images(batch, rows, self._config.geometry.panorama_size)

    def augmented(self, batch: Batch, rows: slice, seed: int) -> tuple[Tensor, Tensor]:
        """Return `images` as drawn for each pair in this epoch.

        Ground images are painted; both views are turned and mirrored; then ground images show a
        part of what is around, where an evaluation shows it.
        """
        ids, augment = batch.sample_ids[rows].tolist(), self._config.augment
        ground, aerial = self.images(batch, rows)
        if "seg" in batch.images:
            classes = class_maps(batch, rows, self._config.geometry.panorama_size)
            painted = draw_class_masking(self._config.semantics, seed, batch.epoch, ids)
            ground = painted.apply(ground, classes)
        drawn = draw(augment, [sample_seed(seed, batch.epoch, i) for i in ids])
        look = draw_field_of_view(
            augment.fov_deg,
            augment.unknown_heading,
            [field_of_view_seed(seed, batch.epoch, i) for i in ids],
        )
        return look.apply(drawn.apply(ground)), self._aerial.moved(aerial, drawn)

    def step(
        self, engines: Mapping[str, Engine], batch: Batch, context: StepContext
    ) -> Mapping[str, Tensor]:
        """Make one step of both towers."""
        engine = engines[ENGINE]
        engine.module.train()
        rows = equal_slices(len(batch.sample_ids), context.chunks)
        chunks = [self.augmented(batch, part, context.seed) for part in rows]

        def embed(chunk: int) -> tuple[Tensor, ...]:
            seed = chunk_seed(context.seed, context.step, context.rank, chunk)
            torch.manual_seed(seed)
            return engine.forward(*chunks[chunk])

        # One chunk keeps its graph; more are embedded again, one graph at a time.
        with torch.set_grad_enabled(context.chunks == 1):
            embedded = [embed(chunk) for chunk in range(context.chunks)]
        share, gradient = gathered_contrastive_loss(self._config.loss, embedded, batch.shown)
        for chunk, part in enumerate(rows):
            outputs = embedded[0] if context.chunks == 1 else embed(chunk)
            engine.backward(gradient.surrogate(outputs, part))
        engine.step(context.rate_factor)
        return {"loss": share}

    @torch.no_grad()
    def evaluate(self, context: StepContext, data: EvaluationData) -> Evaluation:
        """Find each ground image's place in the gallery, by the rules of the data set."""
        section = self._config.evaluation
        split = Split.open(data.shards, data.split, data.cache)
        protocol = choose_protocol(section.protocol, split)
        found = search(self, protocol, context, data)
        ranks = found.ranks()
        scores = recalls(ranks, len(found.gallery_ids))
        if found.truth.ignored.shape[1]:
            scores[HIT_RATE] = float(np.mean(found.ranks(ignoring=True) < 1))
        label = section.label(protocol.name)
        details = {
            "protocol": label,
            "split": data.split,
            "gallery": found.gallery.name,
            "shards": str(data.shards),
            "queries": len(ranks),
            "gallery_size": len(found.gallery_ids),
            "repeated": found.repeated,
            "missing": found.missing,
            "retrievals": retrievals(found, ranks),
            "recall_curve": recall_curve(ranks, len(found.gallery_ids)),
            "outcomes": outcomes(found, ranks),
        }
        return Evaluation(protocol=label, scores=scores, details=details)

    @torch.no_grad()
    def neighbours(self, context: StepContext, split: Split, count: int) -> Tensor:
        """Find the aerial images of other places that each ground panorama is most like."""
        batch, max_missing = self._config.evaluation.batch, self._config.data.max_quarantined
        loader = make_rank_loader(split, self.views, context, batch, max_missing)
        ids, ground, aerial = embed(self, loader, self.views)

        def shown(sample_ids: Tensor) -> Tensor:
            return torch.from_numpy(split.shown(sample_ids.cpu().numpy())).to(context.device)

        gallery = (
            Piece(items, shown(of_items)[:, 0], of_items) for of_items, items in pieces(ids, aerial)
        )
        near = nearest_at_other_places(ground, shown(ids), gallery, count)
        # A sample that could not be read has no neighbours and is not a neighbour.
        own = evaluation_slice(len(split), context.rank, context.world_size)
        table = torch.full((len(own), count), NO_NEIGHBOUR, dtype=torch.int32, device=ground.device)
        table[ids - own.start] = near.int()
        return table

    def require(self, split: Split) -> None:
        """Check that a split has, or can make, the aerial images that the towers were trained on.

        Raises:
            InputError: they are not.
        """
        self._aerial.require(split)

    def require_shards(self, data: EvaluationData) -> None:
        """Check what the protocol asks of the queries and of their gallery."""
        split = Split.open(data.shards, data.split, data.cache)
        open_splits(self, choose_protocol(self._config.evaluation.protocol, split), data)

    def embed(self, batch: Batch | None, views: Sequence[str]) -> list[Tensor]:
        """Return the descriptors of some views, ground images as evaluation shows them."""
        self.towers.eval()
        sizes = dict(
            zip(self.views, (self._config.geometry.panorama_size, self._aerial.size), strict=True)
        )
        if batch is None:
            device = next(self.towers.parameters()).device
            images = {view: torch.zeros(1, 3, *sizes[view], device=device) for view in views}
        else:
            images = {view: self.seen(batch, view) for view in views}
        ground, aerial = (images.get(view) for view in self.views)
        descriptors = self.towers(ground, aerial)[: len(views)]
        return [each[:0] if batch is None else each for each in descriptors]

    def embed_turned(self, batch: Batch, turns: int) -> Tensor:
        """Return the descriptors of aerial images at each of some turns, side by side.

        Args:
            batch: with the aerial view.
            turns: at least 1, at even distances around the circle.

        Returns:
            [n, turns * D], L2-normalised: the cosine of two of them is the mean of the cosines at
            each turn.
        """
        self.towers.eval()
        images = self.seen(batch, self.views[1])
        descriptors = [
            self.towers.embed_aerial(self._aerial.moved(images, Draw.turned(angle, len(images))))
            for angle in even_turns(turns)
        ]
        return torch.cat(descriptors, dim=1) / math.sqrt(turns)

    def seen(self, batch: Batch, view: str) -> Tensor:
        """Return what a tower sees of a batch in an evaluation: [n, 3, H, W], 0 to 255."""
        rows = slice(0, len(batch.sample_ids))
        if view != self.views[0]:
            return self._aerial(batch, rows)
        seeds = [
            field_of_view_seed(self._config.run.seed, NO_EPOCH, int(i)) for i in batch.sample_ids
        ]
        section = self._config.evaluation
        look = draw_field_of_view(
            (section.fov_deg, section.fov_deg), section.unknown_heading, seeds
        )
        return look.apply(self._ground(batch, rows))

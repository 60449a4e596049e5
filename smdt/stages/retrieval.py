"""Retrieval: both towers, one loss over the global batch, recall on a held-out split.

The step is the same function of the global batch for every number of ranks and chunks: descriptors
are gathered from all ranks, each rank takes its rows of the one loss, and the gradient with respect
to its own descriptors is carried through the towers chunk by chunk (gradient caching, Gao et al.
2021).

B samples of the global batch, b of this rank's share, D descriptor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from smdt.config import RetrievalConfig
from smdt.data.loader import Batch, EvaluationLoader
from smdt.data.neighbours import NO_NEIGHBOUR
from smdt.data.order import evaluation_slice
from smdt.data.randomness import chunk_seed, sample_seed
from smdt.data.split import Split
from smdt.evaluation.recall import nearest, nearest_elsewhere, recalls, true_ranks
from smdt.geometry.augment import draw
from smdt.geometry.view import normalise, resize, resize_classes
from smdt.losses import InfoNceConfig
from smdt.models.two_tower import TwoTower
from smdt.semantics.augment import draw_semantics
from smdt.stages.aerial import aerial_images, aerial_view
from smdt.stages.chunks import equal_slices
from smdt.stages.global_loss import loss_over_ranks
from smdt.stages.held_out import loader_of_rank, missing_samples, open_held_out
from smdt.training.engine import Engine
from smdt.training.gathering import gather_ragged
from smdt.training.stage import Evaluation, EvaluationData, Stage, StepContext
from smdt.training.utilization import forward_flops

ENGINE = "two_tower"
SHOWN = 12
"""How many of the best and of the worst retrievals an evaluation keeps for the report."""


class RetrievalStage(Stage):
    """Ground panorama and aerial image to one descriptor space."""

    name = "retrieval"

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config
        self.views = ("ground", aerial_view(config))
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
        return 3.0 * forward_flops(lambda: self.towers(ground, aerial))

    def images(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """Return what the towers see of some rows of a batch.

        Returns:
            Ground and aerial images, [rows, 3, H, W] each, values 0 to 255, uint8 or float32.
        """
        ground = resize(batch.images["ground"][rows], self._config.geometry.panorama_size)
        return ground, self._aerial(batch, rows)

    def inputs(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the towers' inputs for some rows: `images` as float32 in [-1, 1]."""
        ground, aerial = self.images(batch, rows)
        return normalise(ground), normalise(aerial)

    def augmented(self, batch: Batch, rows: slice, seed: int) -> tuple[Tensor, Tensor]:
        """Return `inputs` painted, turned and mirrored as drawn for each pair in this epoch."""
        ids = batch.sample_ids[rows]
        seeds = [sample_seed(seed, batch.epoch, int(i)) for i in ids]
        drawn = draw(self._config.augment, seeds)
        ground, aerial = self.images(batch, rows)
        if "seg" in batch.images:
            classes = resize_classes(batch.images["seg"][rows], self._config.geometry.panorama_size)
            painted = draw_semantics(self._config.semantics, seed, batch.epoch, ids)
            ground = painted.apply(ground, classes)
        return drawn.apply(normalise(ground)), self._aerial.moved(normalise(aerial), drawn)

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
        share, gradient = loss_over_ranks(self._config.loss, embedded, batch.shown)
        for chunk, part in enumerate(rows):
            outputs = embedded[0] if context.chunks == 1 else embed(chunk)
            engine.backward(gradient.surrogate(outputs, part))
        engine.step(context.rate_factor)
        return {"loss": share}

    @torch.no_grad()
    def evaluate(self, context: StepContext, data: EvaluationData) -> Evaluation:
        """Find each ground panorama's aerial image among all of the split's."""
        split, loader = open_held_out(self.views, context, data)
        self._aerial.require(split)
        found = self.embed(loader, context)
        count = len(found.sample_ids)
        missing = missing_samples(split, count, data.max_missing)
        # Each rank scores its part of the queries against the whole gallery.
        own = evaluation_slice(count, context.rank, context.world_size)
        positions = torch.arange(own.start, own.stop, device=found.ground.device)
        own_ranks = true_ranks(found.ground[positions], found.aerial, positions)
        ranks = gather_ragged(own_ranks).cpu().numpy()
        scores = recalls(ranks, count)
        details = {
            "protocol": data.split,
            "shards": str(data.shards),
            "queries": len(ranks),
            "missing": missing,
            "retrievals": retrievals(found, ranks),
        }
        return Evaluation(protocol=data.split, scores=scores, details=details)

    @torch.no_grad()
    def neighbours(self, context: StepContext, split: Split, count: int) -> Tensor:
        """Find the aerial images of other places that each ground panorama is most like."""
        batch, max_missing = self._config.evaluation.batch, self._config.data.max_quarantined
        loader = loader_of_rank(split, self.views, context, batch, max_missing)
        found = self.embed(loader, context)
        own = evaluation_slice(len(split), context.rank, context.world_size)
        asking = (found.sample_ids >= own.start) & (found.sample_ids < own.stop)
        shown = torch.from_numpy(split.shown(found.sample_ids.numpy())).to(found.ground.device)
        near = nearest_elsewhere(
            found.ground[asking], found.aerial, shown[asking], shown[:, 0], count
        )
        near = near.cpu()
        # What could not be read has no neighbours and is none.
        table = torch.full((len(own), count), NO_NEIGHBOUR, dtype=torch.int32)
        ids = torch.where(near < 0, NO_NEIGHBOUR, found.sample_ids[near])
        table[found.sample_ids[asking] - own.start] = ids.int()
        return table.to(context.device)

    def embed(self, loader: EvaluationLoader, context: StepContext) -> "Descriptors":
        """Embed what the loader of every rank reads; every rank calls it and gets all of it."""
        self.towers.eval()
        views: list[tuple[Tensor, Tensor]] = []
        ids: list[np.ndarray] = []
        for batch in loader:
            everything = slice(0, len(batch.sample_ids))
            ground, aerial, *_ = self.towers(*self.inputs(batch, everything))
            views.append((ground, aerial))
            ids.append(batch.sample_ids)
        # Under ZeRO 3 a forward is a collective: ranks with fewer batches join in empty-handed.
        sizes = (self._config.geometry.panorama_size, self._config.aerial_size)
        blanks = [torch.zeros(1, 3, *size, device=context.device) for size in sizes]
        for _ in range(loader.longest - len(views)):
            self.towers(*blanks)
        nothing = torch.empty(0, self.towers.descriptor_dim, device=context.device)
        return Descriptors(
            sample_ids=gather_ragged(
                torch.from_numpy(np.concatenate([np.empty(0, np.int64), *ids]))
            ),
            ground=gather_ragged(torch.cat([nothing, *(ground for ground, _ in views)])),
            aerial=gather_ragged(torch.cat([nothing, *(aerial for _, aerial in views)])),
        )


@dataclass(frozen=True)
class Descriptors:
    """Both views of the samples of a split: ids int64 [N], descriptors float32 [N, D]."""

    sample_ids: Tensor
    ground: Tensor
    aerial: Tensor


def retrievals(found: Descriptors, ranks: np.ndarray) -> list[dict[str, object]]:
    """Return the best and the worst queries with the five nearest aerial images of each."""
    order = np.argsort(ranks, kind="stable")
    shown = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
    k = min(5, len(ranks))
    scores, indices = nearest(found.ground[torch.from_numpy(shown)], found.aerial, k)
    return [
        {
            "query": int(found.sample_ids[query]),
            "rank": float(ranks[query]),
            "nearest": found.sample_ids[indices[row].cpu()].tolist(),
            "scores": scores[row].tolist(),
            "true_score": float(found.ground[query] @ found.aerial[query]),
        }
        for row, query in enumerate(shown.tolist())
    ]

"""Queries against a gallery, over all ranks: who embeds what, and how far down the right one is.

Every rank embeds its part of both. The gallery is gathered, so that it lies on every rank; queries
stay where they were embedded, and each rank ranks its own.

Q queries of all ranks, q of this one, G gallery items, D descriptor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data_shards.base.errors import DataError, DataInputError
from smdt.data.distinct_places import Ids, first_of_each
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.loader import Batch
from smdt.data.split import Split
from smdt.evaluation.protocol import (
    PROTOCOLS,
    EvaluationProtocol,
    ProtocolName,
    Relevance,
    check_area,
    match_by_id,
    named_tiles,
    protocol_of,
    require_positions,
    same_cities,
    tiles_within,
)
from smdt.evaluation.recall import nearest, true_ranks
from smdt.stages.evaluation import make_rank_loader
from smdt.training.loop.stage import EvaluationData, StepContext
from smdt.training.ranks.gathering import all_gather_lists, all_gather_ragged

SEMI_POSITIVES = ("semi_positive_1", "semi_positive_2", "semi_positive_3")
SHOWN = 12
"""Number of best and of worst retrievals in the report."""
NEAREST = 5
"""Number of nearest gallery items of each."""


class Embedder(Protocol):
    """A model that makes descriptors of batches."""

    @property
    def views(self) -> tuple[str, ...]:
        """Return the parts that a batch needs: for a ground descriptor, and for an aerial one."""

    def require(self, split: Split) -> None:
        """Check that a split is what descriptors can be made of."""

    def embed(self, batch: Batch | None, views: Sequence[str]) -> list[Tensor]:
        """Return the descriptors [n, D] of each view of a batch.

        Without a batch it goes through the same collectives, and returns descriptors of nothing.
        """


@dataclass(frozen=True)
class SearchResult:
    """Embedded queries and gallery, and what should be found.

    Attributes:
        queries: split of the queries.
        gallery: split of the gallery.
        first: number of the first query of this rank, among those of all ranks.
        query_ids: [q] samples of this rank's queries.
        query: [q, D] their descriptors.
        gallery_ids: [G] samples of the gallery, on all ranks.
        items: [G, D] their descriptors.
        truth: of this rank's queries.
        missing: samples of all ranks that could not be read, or have lost their partner.
        repeated: samples of the gallery without an entry, because another one has their image.
    """

    queries: Split
    gallery: Split
    first: int
    query_ids: Ids
    query: Tensor
    gallery_ids: Ids
    items: Tensor
    truth: Relevance
    missing: int
    repeated: int = 0

    def ranks(self, ignoring: bool = False) -> np.ndarray:
        """Rank the right items of all queries, float64 [Q]; every rank calls it.

        Args:
            ignoring: whether items that are neither right nor wrong are left out.
        """
        device = self.query.device
        right = torch.from_numpy(self.truth.right).to(device)
        ignored = torch.from_numpy(self.truth.ignored).to(device) if ignoring else None
        own = true_ranks(self.query, self.items, right, ignored)
        gathered: np.ndarray = all_gather_ragged(own).cpu().numpy()
        return gathered


def choose_protocol(name: ProtocolName | None, split: Split) -> EvaluationProtocol:
    """Return the protocol of a configuration, or the one of the data set.

    Raises:
        InputError: the shards are of another area than the protocol.
    """
    area = split.source.get("area")
    protocol = protocol_of(split.data_set, area, split.name) if name is None else PROTOCOLS[name]
    check_area(protocol, area)
    return protocol


def embed(embedder: Embedder, loader: EvaluationLoader, views: Sequence[str]) -> list[Tensor]:
    """Embed what this rank's loader reads; every rank calls it.

    Returns:
        Sample ids int64 [n], then the descriptors [n, D] of each view.
    """
    ids = [np.empty(0, dtype=np.int64)]
    parts = []
    for batch in loader:
        ids.append(batch.sample_ids)
        parts.append(embedder.embed(batch, views))
    # Under ZeRO 3 a forward is a collective: ranks with fewer batches join in empty-handed.
    while len(parts) < max(loader.longest, 1):
        parts.append(embedder.embed(None, views))
    descriptors = [torch.cat([part[side] for part in parts]) for side in range(len(views))]
    return [torch.from_numpy(np.concatenate(ids)).to(descriptors[0].device), *descriptors]


def open_splits(
    embedder: Embedder, protocol: EvaluationProtocol, data: EvaluationData
) -> tuple[Split, Split]:
    """Open the split of the queries and that of the gallery, which may be one.

    Raises:
        DataInputError: they do not fit the protocol or the embedder.
        DataError: more samples are in missing or truncated tars than may be missing.
        EvaluationError: a position is unknown that the protocol needs.
    """
    queries = gallery = Split.open(data.shards, data.split, data.cache)
    if protocol.gallery is not None:
        gallery = Split.open(data.shards, protocol.gallery, data.cache)
        if (queries.column("positive") < 0).any():
            raise DataInputError(
                f"Split {queries.name!r} in {queries.root} names no tile for some samples: "
                f"protocol {protocol.name} can't say what is right for them."
            )
    ground_view, aerial_view = embedder.views
    queries.require_views([ground_view])
    gallery.require_views([aerial_view])
    embedder.require(gallery)
    for split in (queries, gallery):
        split.require_tars(data.max_missing, "max_missing")
    if protocol.within_m:
        require_positions(queries.utm, protocol.within_m)
    return queries, gallery


def search(
    embedder: Embedder, protocol: EvaluationProtocol, context: StepContext, data: EvaluationData
) -> SearchResult:
    """Embed queries and gallery by the rules of a protocol; every rank calls it.

    Raises:
        DataInputError: the splits do not fit the protocol or the embedder.
        DataError: more samples are missing than may be.
        EvaluationError: a position is unknown that the protocol needs.
    """
    queries, gallery = open_splits(embedder, protocol, data)
    result = (
        _pairs(embedder, protocol, queries, context, data)
        if gallery is queries
        else _two_splits(embedder, queries, gallery, context, data)
    )
    if result.missing > data.max_missing:
        raise DataError(
            f"{result.missing} samples of {queries.root} can't be read, or their tile can't, more "
            f"than max_missing={data.max_missing}; `smdt shards verify {queries.root}` says which "
            "and why."
        )
    return result


def _pairs(
    embedder: Embedder,
    protocol: EvaluationProtocol,
    split: Split,
    context: StepContext,
    data: EvaluationData,
) -> SearchResult:
    """The gallery are the aerial images of the queries' own split."""
    loader = make_rank_loader(split, embedder.views, context, data.batch, data.max_missing)
    ids, ground, aerial = embed(embedder, loader, embedder.views)
    own_ids, read_ids = ids.cpu().numpy(), all_gather_ragged(ids).cpu().numpy()
    gallery_ids, items = read_ids, all_gather_ragged(aerial)
    images = split.aerial_images(gallery_ids)
    if protocol.one_entry:
        entries = first_of_each(images)
        if len(entries) < len(read_ids):  # else nothing is copied
            gallery_ids = read_ids[entries]
            items = items[torch.from_numpy(entries).to(items.device)]
        truth = match_by_id(split.places[own_ids], split.places[gallery_ids])
    elif protocol.within_m:
        near = tiles_within(split.utm[own_ids], split.utm[gallery_ids], protocol.within_m)
        truth = near.with_copies(images)
    else:
        truth = match_by_id(own_ids, gallery_ids).with_copies(images)
    return SearchResult(
        queries=split,
        gallery=split,
        first=int(np.searchsorted(read_ids, own_ids[0])) if len(own_ids) else 0,
        query_ids=own_ids,
        query=ground,
        gallery_ids=gallery_ids,
        items=items,
        truth=truth,
        missing=len(split) - len(read_ids),
        repeated=len(read_ids) - len(gallery_ids),
    )


def _two_splits(
    embedder: Embedder,
    queries: Split,
    gallery: Split,
    context: StepContext,
    data: EvaluationData,
) -> SearchResult:
    """Queries name their tiles in a gallery, of which the cities of the queries are searched."""
    ground_view, aerial_view = embedder.views
    chosen = np.flatnonzero(same_cities(queries.names("source_id"), gallery.names("source_id")))
    limits = context, data.batch, data.max_missing
    tiles = make_rank_loader(gallery, [aerial_view], *limits, sample_ids=chosen)
    tile_ids, items = (all_gather_ragged(part) for part in embed(embedder, tiles, [aerial_view]))
    photos = make_rank_loader(queries, [ground_view], *limits)
    ids, ground = embed(embedder, photos, [ground_view])

    gallery_ids, own_ids = tile_ids.cpu().numpy(), ids.cpu().numpy()
    keys = gallery.names("key")
    numbers = np.array([int(keys[i].rpartition("-")[2]) for i in gallery_ids], dtype=np.int64)
    # A query whose tile cannot be read has no answer and is left out.
    answerable = np.isin(queries.column("positive")[own_ids], numbers)
    own_ids, ground = own_ids[answerable], ground[torch.from_numpy(answerable).to(ground.device)]
    semi_positives = np.stack([queries.column(name)[own_ids] for name in SEMI_POSITIVES], axis=1)
    truth = named_tiles(queries.column("positive")[own_ids], semi_positives, numbers)
    answered = all_gather_ragged(torch.tensor([len(own_ids)], device=ground.device)).tolist()
    return SearchResult(
        queries=queries,
        gallery=gallery,
        first=sum(answered[: context.rank]),
        query_ids=own_ids,
        query=ground,
        gallery_ids=gallery_ids,
        items=items,
        truth=truth.with_copies(gallery.aerial_images(gallery_ids)),
        missing=len(queries) - sum(answered) + len(chosen) - len(gallery_ids),
    )


def retrievals(found: SearchResult, ranks: np.ndarray) -> list[dict[str, object]]:
    """Return the best and the worst queries with the nearest gallery items of each, best first.

    Every rank calls it and gets all of them.

    Args:
        found: what was searched.
        ranks: float64 [Q] of all queries.
    """
    order = np.argsort(ranks, kind="stable")
    shown = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
    own = shown[(shown >= found.first) & (shown < found.first + len(found.query_ids))]
    rows = torch.from_numpy(own - found.first).to(found.query.device)
    query, right = found.query[rows], found.truth.right[rows.cpu().numpy()]
    scores, items = nearest(query, found.items, min(NEAREST, len(found.items)))
    true_scores = [float((q @ found.items[at].T).max()) for q, at in zip(query, right, strict=True)]
    entries = {
        position: {
            "query": int(found.query_ids[position - found.first]),
            "rank": float(ranks[position]),
            "nearest": found.gallery_ids[items[row].cpu().numpy()].tolist(),
            "scores": scores[row].tolist(),
            "right": np.unique(found.gallery_ids[right[row]]).tolist(),
            "true_score": true_scores[row],
        }
        for row, position in enumerate(own.tolist())
    }
    everyone = dict(all_gather_lists([*entries.items()]))
    return [everyone[position] for position in shown.tolist()]

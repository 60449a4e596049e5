"""Queries against a gallery: VIGOR's and CVACT's rules on real shards, on one rank and on three."""

import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from data_shards.base.errors import DataError, DataInputError, InputError
from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, Sample
from data_shards.sources.source import SplitPlan
from smdt.data.shard_cache import CacheConfig
from smdt.data.split import Split
from smdt.evaluation.protocol import PROTOCOLS
from smdt.evaluation.recall import EvaluationError
from smdt.stages.retrieval.outcomes import outcomes
from smdt.stages.retrieval.ranking import choose_protocol, open_splits, retrievals, search
from smdt.training.loop.stage import EvaluationData, StepContext

CITIES = ("Chicago", "Seattle", "Chicago", "SanFrancisco")
TILES, QUERIES, DIM = 40, 30, 8


class Vigor:
    """Photos and tiles of one colour each; every photo names a tile and others that show it too."""

    name = "vigor"
    splits: ClassVar = {
        "test": SplitPlan("ground", QUERIES),
        "aerial": SplitPlan("aerial", TILES),
    }

    def sample(self, split: str, row: int) -> Sample:
        if split == "aerial":
            return Sample(Meta(f"{CITIES[row % 4]}/{row}"), {"aerial.png": picture(row)})
        positive, *others = named(row)
        meta = Meta(
            f"{CITIES[positive % 4]}/p{row}", positive=positive, semi_positives=tuple(others)
        )
        return Sample(meta, {"ground.png": picture(row)})

    def options(self) -> dict[str, object]:
        return {"area": "cross"}


class Cvact:
    """Pairs along a street, two or three metres from one to the next."""

    name = "cvact"
    splits: ClassVar = {"test": SplitPlan("pairs", QUERIES)}

    def sample(self, split: str, row: int) -> Sample:
        meta = Meta(f"{row}", utm=position(row))
        return Sample(meta, {"ground.png": picture(row), "aerial.png": picture(row)})

    def options(self) -> dict[str, object]:
        return {}


def named(query: int) -> list[int]:
    """Tile of a photo, in Chicago or San Francisco, then semi-positive ones."""
    rng = np.random.default_rng(query)
    cities = [tile for tile in range(TILES) if tile % 4 != 1]
    return rng.choice(cities, 1 + query % 4, replace=False).tolist()


def position(row: int) -> tuple[float, float]:
    return 690_000.0 + 2.5 * row + (row % 3) / 4, 6_090_000.0


def picture(number: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


class CvactOfUnknownPlaces(Cvact):
    """The same; nobody knows where the first two were taken."""

    def sample(self, split: str, row: int) -> Sample:
        sample = super().sample(split, row)
        return replace(sample, meta=Meta(f"{row}")) if row < 2 else sample


SHARED = 12
"""Tiles that two photos have each."""


@dataclass(frozen=True)
class SharedTiles:
    """Photos of tiles; the second photo of a tile has its own GPS, 5 m away.

    The last two rows are of one position: one has the first tile, the other a tile of its own.
    """

    name: str = "folder"
    splits: ClassVar = {"test": SplitPlan("pairs", 2 * SHARED + 2)}

    def sample(self, split: str, row: int) -> Sample:
        tile = tile_of(row)
        lat = 10.0 if row >= 2 * SHARED else 40.0 + 0.01 * tile + 0.00005 * (row >= SHARED)
        meta = Meta(f"{row}", lat=lat, lon=-80.0, utm=(500_000.0 + 100 * row, 4_000_000.0))
        return Sample(meta, {"ground.png": picture(tile), "aerial.png": picture(tile)})

    def options(self) -> dict[str, object]:
        return {}


def tile_of(row: int) -> int:
    return {2 * SHARED: 0, 2 * SHARED + 1: SHARED}.get(row, row % SHARED)


@dataclass
class Colours:
    """Looks an image's descriptor up by its colour; some tiles look exactly alike."""

    views: tuple[str, ...] = ("ground", "aerial")

    def require(self, split: Split) -> None:
        pass

    def embed(self, batch, views: Sequence[str]) -> list[torch.Tensor]:
        if batch is None:
            return [torch.zeros(0, DIM) for _ in views]
        return [table(view)[batch.images[view][:, 0, 0, 0].long()] for view in views]


def table(view: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(view))
    rows = torch.nn.functional.normalize(torch.randn(TILES, DIM, generator=generator), dim=1)
    if view == "aerial":
        rows[::5] = rows[0]
    return rows


@pytest.fixture(scope="module")
def vigor(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vigor") / "shards"
    build(Vigor(), root, BuildOptions(seed=5, samples_per_shard=7), workers=1)
    return root


@pytest.fixture(scope="module")
def cvact(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cvact") / "shards"
    build(Cvact(), root, BuildOptions(seed=6, samples_per_shard=7), workers=1)
    return root


@dataclass(frozen=True)
class Found:
    """Ranks of all queries by their source's number, and what is shown of them."""

    ranks: dict[int, float]
    hits: dict[int, float]
    gallery: int
    shown: list
    outcomes: dict


def evaluate(
    root: Path, rank: int = 0, world_size: int = 1, file: str = "", missing: int = 0
) -> Found:
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{file}", rank=rank, world_size=world_size
        )
    data = EvaluationData(str(root), "test", 4, missing, CacheConfig())
    context = StepContext(0, 0, rank, world_size, 1, torch.device("cpu"))
    split = Split.open(root, "test")
    found = search(Colours(), choose_protocol(None, split), context, data)
    ranks = found.ranks()
    ids = [torch.from_numpy(found.query_ids)]
    if world_size > 1:
        everyone = [None] * world_size
        dist.all_gather_object(everyone, found.query_ids)
        ids = [torch.from_numpy(each) for each in everyone]
    numbers = [int(split.source_id(i).rpartition("p")[2]) for i in torch.cat(ids).tolist()]
    result = Found(
        dict(zip(numbers, ranks.tolist(), strict=True)),
        dict(zip(numbers, found.ranks(ignoring=True).tolist(), strict=True)),
        len(found.gallery_ids),
        retrievals(found, ranks),
        outcomes(found, ranks),
    )
    if world_size > 1:
        dist.destroy_process_group()
    return result


def plain_rank(query: int, gallery: list[int], right: set[int], ignored: set[int]) -> float:
    """Rank by one comparison after the other; equal tiles have equal scores."""
    tiles = table("aerial").double().numpy()
    unique, place = np.unique(tiles, axis=0, return_inverse=True)
    scores = (unique @ table("ground")[query].double().numpy())[place.ravel()]
    true = max(scores[tile] for tile in right)
    wrong = [scores[tile] for tile in gallery if tile not in right | ignored]
    return sum(s > true for s in wrong) + sum(s == true for s in wrong) / 2


def test_vigor_cross_area_searches_the_cities_of_its_queries(vigor):
    found = evaluate(vigor)
    gallery = [tile for tile in range(TILES) if CITIES[tile % 4] != "Seattle"]
    assert found.gallery == len(gallery) == 30
    assert sorted(found.ranks) == list(range(QUERIES))
    for query in range(QUERIES):
        own, *others = named(query)
        assert found.ranks[query] == plain_rank(query, gallery, {own}, set())
        assert found.hits[query] == plain_rank(query, gallery, {own}, set(others))
    assert found.ranks != found.hits


def test_cvact_test_takes_what_is_within_five_metres(cvact):
    found = evaluate(cvact)
    for query in range(QUERIES):
        near = {tile for tile in range(QUERIES) if abs(position(tile)[0] - position(query)[0]) <= 5}
        assert len(near) >= 2
        assert found.ranks[query] == plain_rank(query, list(range(QUERIES)), near, set())


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["vigor", "cvact"])
def test_three_ranks_find_what_one_finds(request, shards, tmp_path):
    root = request.getfixturevalue(shards)
    alone = evaluate(root)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        calls = [(root, rank, 3, str(tmp_path / "group")) for rank in range(3)]
        everyone = pool.starmap(evaluate, calls)
    for found in everyone:
        assert found.ranks == alone.ranks
        assert found.hits == alone.hits
        assert [row["query"] for row in found.shown] == [row["query"] for row in alone.shown]
        for one, other in zip(found.shown, alone.shown, strict=True):
            assert one["nearest"] == other["nearest"]
            assert one["right"] == other["right"]
            assert one["true_score"] == pytest.approx(other["true_score"])
        for name, values in found.outcomes.items():
            assert values == pytest.approx(alone.outcomes[name], abs=1e-4), name


def test_the_best_and_the_worst_are_shown_with_what_is_nearest(vigor):
    found = evaluate(vigor)
    queries, gallery = Split.open(vigor, "test"), Split.open(vigor, "aerial")
    ranks = [row["rank"] for row in found.shown]
    assert ranks == sorted(found.ranks.values())[:12] + sorted(found.ranks.values())[-12:]
    for row in found.shown:
        number = int(queries.source_id(row["query"]).rpartition("p")[2])
        assert row["rank"] == found.ranks[number]
        (right,) = (gallery.source_id(tile).split("/")[1] for tile in row["right"])
        assert int(right) == named(number)[0]
        scores = table("aerial") @ table("ground")[number]
        assert row["true_score"] == pytest.approx(float(scores[int(right)]))
        tiles = [int(gallery.source_id(tile).split("/")[1]) for tile in row["nearest"]]
        in_cities = torch.tensor([tile % 4 != 1 for tile in range(TILES)])
        best = scores[in_cities].sort(descending=True).values[:5]
        torch.testing.assert_close(scores[tiles], best)
        torch.testing.assert_close(torch.tensor(row["scores"]), best)


def test_outcomes_are_similarities_and_metres_to_the_nearest_tile(cvact):
    found = evaluate(cvact).outcomes
    scores = table("ground")[:QUERIES].double() @ table("aerial")[:QUERIES].double().T
    split = Split.open(cvact, "test")
    numbers = [int(split.source_id(i)) for i in range(QUERIES)]
    for row, query in enumerate(numbers):
        near = [abs(position(tile)[0] - position(query)[0]) <= 5 for tile in range(QUERIES)]
        right = torch.tensor(near)
        assert found["true_score"][row] == pytest.approx(
            float(scores[query][right].max()), abs=1e-4
        )
        assert found["wrong_score"][row] == pytest.approx(
            float(scores[query][~right].max()), abs=1e-4
        )
        # Tiles that look alike are equally near: one of them is where the error leads.
        best = torch.isclose(scores[query], scores[query].max(), atol=1e-6)
        errors = [
            abs(position(tile)[0] - position(query)[0]) for tile in range(QUERIES) if best[tile]
        ]
        assert any(found["error_m"][row] == pytest.approx(e, rel=0.01, abs=0.05) for e in errors)
    east = np.array(found["east_m"])[np.argsort(numbers)]
    expected = np.array([position(query)[0] for query in range(QUERIES)])
    np.testing.assert_allclose(np.diff(east), np.diff(expected), rtol=0.01, atol=0.05)


def damage(root: Path, split: str, row: int, part: str) -> None:
    opened = Split.open(root, split)
    with opened.tar(row).open("r+b") as tar:
        tar.seek(opened.column(f"{part}_offset")[row] + 20)
        tar.write(b"????")


def test_what_cannot_be_read_is_counted_and_takes_its_queries_along(vigor, tmp_path):
    root = shutil.copytree(vigor, tmp_path / "damaged")
    gallery = Split.open(root, "aerial")
    lost = next(i for i in range(TILES) if gallery.key(i) == f"aerial-{named(3)[0]:09d}")
    damage(root, "aerial", lost, "aerial")
    queries = [q for q in range(QUERIES) if named(q)[0] == named(3)[0]]
    with pytest.raises(DataError, match=f"{1 + len(queries)} samples .* more than max_missing="):
        evaluate(root, missing=len(queries))
    found = evaluate(root, missing=1 + len(queries))
    assert sorted(found.ranks) == [q for q in range(QUERIES) if q not in queries]
    assert found.gallery == 29


def test_senseless_protocols_are_one_sentence(vigor, cvact):
    photos, pairs = Split.open(vigor, "test"), Split.open(cvact, "test")
    assert choose_protocol(None, photos).name == "vigor_cross"
    assert choose_protocol("pairs", pairs).name == "pairs"
    with pytest.raises(InputError, match="built with --area cross: use vigor_cross"):
        choose_protocol("vigor_same", photos)
    data = EvaluationData(str(cvact), "test", 4, 0, CacheConfig())
    context = StepContext(0, 0, 0, 1, 1, torch.device("cpu"))
    with pytest.raises(DataInputError, match="no split 'aerial'"):
        search(Colours(), PROTOCOLS["vigor_same"], context, data)
    of_vigor = EvaluationData(str(vigor), "test", 4, 0, CacheConfig())
    with pytest.raises(DataInputError, match="no aerial image"):
        search(Colours(), PROTOCOLS["cvusa"], context, of_vigor)


def test_five_metres_ask_for_every_position_before_anything_is_embedded(tmp_path):
    root = tmp_path / "shards"
    build(CvactOfUnknownPlaces(), root, BuildOptions(), workers=1)
    data = EvaluationData(str(root), "test", 4, 0, CacheConfig())
    open_splits(Colours(), PROTOCOLS["cvact_val"], data)
    with pytest.raises(EvaluationError, match="2 of 30 samples have no UTM position"):
        open_splits(Colours(), PROTOCOLS["cvact_test"], data)


@pytest.mark.parametrize("split", ["test", "aerial"])
def test_a_half_copied_gallery_is_refused_before_anything_is_embedded(
    vigor, tmp_path, monkeypatch, split
):
    root = shutil.copytree(vigor, tmp_path / "copy")
    sorted((root / split).glob("*.tar"))[-1].unlink()
    monkeypatch.setattr(Colours, "embed", None)
    data = EvaluationData(str(root), "test", 4, 0, CacheConfig())
    context = StepContext(0, 0, 0, 1, 1, torch.device("cpu"))
    with pytest.raises(DataError, match=f"tars of split '{split}' are missing"):
        search(Colours(), PROTOCOLS["vigor_cross"], context, data)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_zero_and_nan_descriptors_never_score(cvact, monkeypatch, value):
    honest: Callable = Colours.embed

    def broken(self, batch, views):
        ground, aerial = honest(self, batch, views)
        return [torch.full_like(ground, value), aerial]

    monkeypatch.setattr(Colours, "embed", broken)
    with pytest.raises(EvaluationError, match="zero or not finite"):
        evaluate(cvact)


def test_collapsed_descriptors_score_chance(cvact, monkeypatch):
    def collapsed(self, batch, views):
        count = 0 if batch is None else len(batch.sample_ids)
        return [torch.full((count, DIM), DIM**-0.5) for _ in views]

    monkeypatch.setattr(Colours, "embed", collapsed)
    found = evaluate(cvact)
    for query, rank in found.ranks.items():
        near = sum(abs(position(t)[0] - position(query)[0]) <= 5 for t in range(QUERIES))
        assert rank == (QUERIES - near) / 2


def shared_tiles(tmp_path: Path, name: str) -> Path:
    build(SharedTiles(name), tmp_path / name, BuildOptions(samples_per_shard=9), workers=1)
    return tmp_path / name


def test_a_tile_of_several_photos_is_one_entry_and_right_for_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.smdt.stages.retrieval.test_ranking.table", different)
    root = shared_tiles(tmp_path, "folder")
    split = Split.open(root, "test")
    numbers = [int(split.source_id(i)) for i in range(len(split))]
    # The first tile's photos, the one with the first tile elsewhere, and what is there as well.
    chain = {0, SHARED, 2 * SHARED, 2 * SHARED + 1}
    for i, one in enumerate(numbers):
        for j, other in enumerate(numbers):
            same = tile_of(one) == tile_of(other) or {one, other} <= chain
            assert (split.places[i] == split.places[j]) == same
    found = evaluate(root)
    assert found.gallery == SHARED + 1
    for query, rank in found.ranks.items():
        right = {0, SHARED} if query in chain else {tile_of(query)}
        assert rank == plain_rank(tile_of(query), list(range(SHARED + 1)), right, set())


@pytest.mark.parametrize("name", ["cvusa", "cvact"])
def test_a_published_protocol_keeps_its_gallery_and_takes_copies_for_right(
    tmp_path, monkeypatch, name
):
    """The published code counts what is strictly nearer: a copy of the right tile never is."""
    monkeypatch.setattr("tests.smdt.stages.retrieval.test_ranking.table", different)
    root = shared_tiles(tmp_path, name)
    protocol = {"cvusa": "cvusa", "cvact": "cvact_test"}[name]
    data = EvaluationData(str(root), "test", 4, 0, CacheConfig())
    context = StepContext(0, 0, 0, 1, 1, torch.device("cpu"))
    found = search(Colours(), PROTOCOLS[protocol], context, data)
    split = found.queries
    tiles = [tile_of(int(split.source_id(i))) for i in found.gallery_ids]
    assert len(tiles) == 2 * SHARED + 2
    assert found.repeated == 0
    scores = different("ground").double() @ different("aerial").double().T
    for query, rank in zip(found.query_ids, found.ranks(), strict=True):
        own = tile_of(int(split.source_id(query)))
        assert rank == sum(scores[own, tile] > scores[own, own] for tile in tiles)


def different(view: str) -> torch.Tensor:
    """Descriptors of which no two are alike."""
    generator = torch.Generator().manual_seed(len(view))
    return torch.nn.functional.normalize(torch.randn(TILES, DIM, generator=generator), dim=1)


class DateLine(Cvact):
    """Pairs within 2 km on both sides of the 180th meridian."""

    name = "folder"

    def sample(self, split: str, row: int) -> Sample:
        sample = super().sample(split, row)
        lon = 179.992 + 0.0005 * row
        return replace(sample, meta=Meta(f"{row}", lat=10.0, lon=lon if lon <= 180 else lon - 360))


def test_places_across_the_date_line_are_near_each_other(tmp_path):
    build(DateLine(), tmp_path / "shards", BuildOptions(), workers=1)
    found = evaluate(tmp_path / "shards").outcomes
    split = Split.open(tmp_path / "shards", "test")
    order = np.argsort([int(split.source_id(i)) for i in range(QUERIES)])
    step = np.radians(0.0005) * 6_371_008.8 * np.cos(np.radians(10))
    np.testing.assert_allclose(np.diff(np.array(found["east_m"])[order]), step, rtol=1e-4)
    assert max(found["error_m"]) < (QUERIES - 1) * step + 1
    assert np.abs(found["north_m"]).max() < 1

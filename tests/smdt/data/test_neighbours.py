"""Neighbour tables: near on the map, of other places, and the same file when a run goes on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import DataError
from smdt.data import neighbours
from smdt.data.neighbours import NeighbourTable, nearest_by_position


class Positions:
    """A split of which only positions and places are known."""

    name, root = "train", "nowhere"

    def __init__(self, lat, lon, utm_e, utm_n, places, also=None):
        self.places = np.asarray(places)
        self._also = np.empty((len(self.places), 0), dtype=np.int64) if also is None else also
        self._columns = {"lat": lat, "lon": lon}
        self.utm = np.stack([utm_e, utm_n], axis=1)

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self._columns[name], dtype=float)

    def shown(self, sample_ids) -> np.ndarray:
        return np.concatenate([self.places[:, None], self._also], axis=1)[sample_ids]


def on_the_globe(lat, lon, places=None) -> Positions:
    nothing = np.full(len(lat), np.nan)
    return Positions(lat, lon, nothing, nothing, np.arange(len(lat)) if places is None else places)


def kilometres(lat, lon) -> np.ndarray:
    """Haversine distance of every pair, [N, N]."""
    lat, lon = np.radians(lat), np.radians(lon)
    half = (
        np.sin((lat[:, None] - lat) / 2) ** 2
        + np.cos(lat)[:, None] * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    )
    return 2 * 6371 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 12))
def test_the_nearest_on_the_globe_also_across_the_date_line(seed, count, k):
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(-90, 90, count), rng.uniform(-180, 180, count)
    table = nearest_by_position(on_the_globe(lat, lon), k, range(count))
    assert table.dtype == np.int32
    assert table.shape == (count, k)
    distance = kilometres(lat, lon)
    np.fill_diagonal(distance, np.inf)
    expected = np.sort(distance, axis=1)[:, : min(k, count - 1)]
    found = np.take_along_axis(distance, table[:, : min(k, count - 1)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (table[:, count - 1 :] == -1).all()


def test_any_rows_of_the_table_are_the_same_as_the_whole():
    rng = np.random.default_rng(0)
    split = on_the_globe(rng.uniform(-90, 90, 30), rng.uniform(-180, 180, 30))
    whole = nearest_by_position(split, 5, range(30))
    parts = [nearest_by_position(split, 5, range(a, b)) for a, b in ((0, 7), (7, 7), (7, 30))]
    assert np.array_equal(np.concatenate(parts), whole)


def test_samples_of_one_place_are_no_neighbours_and_take_turns_as_such():
    lat = np.array([10.0, 10.0, 10.0, 10.1, 10.3])
    table = nearest_by_position(on_the_globe(lat, np.zeros(5), [0, 0, 0, 1, 2]), 4, range(5))
    assert table[0].tolist() == [3, 4, -1, -1]
    assert table[3].tolist() == [0, 4, -1, -1]
    assert table[4].tolist() == [3, 1, -1, -1]


def test_places_that_a_sample_belongs_to_as_well_are_no_neighbours():
    lat, nothing = np.array([10.0, 10.1, 10.3, 10.7]), np.full(4, np.nan)
    also = np.array([[1, -1], [0, 2], [-1, -1], [2, 7]])
    split = Positions(lat, np.zeros(4), nothing, nothing, [0, 1, 2, 3], np.minimum(also, 3))
    table = nearest_by_position(split, 2, range(4))
    assert table.tolist() == [[2, 3], [3, -1], [1, 0], [1, 0]]


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 12))
def test_the_nearest_of_the_others_whatever_is_left_out(seed, count, k):
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(-90, 90, count), rng.uniform(-180, 180, count)
    nothing = np.full(count, np.nan)
    also = rng.integers(-1, count, (count, 3))
    table = nearest_by_position(
        Positions(lat, lon, nothing, nothing, np.arange(count), also), k, range(count)
    )
    distance = kilometres(lat, lon)
    for row in range(count):
        left = [j for j in range(count) if j != row and j not in also[row]]
        found = [j for j in table[row].tolist() if j >= 0]
        assert set(found) <= set(left)
        expected = sorted(distance[row, left])[:k]
        np.testing.assert_allclose(distance[row, found], expected, rtol=1e-6)


def test_samples_without_a_position_have_no_neighbours_and_are_none():
    lat = np.array([10.0, np.nan, 10.2])
    table = nearest_by_position(on_the_globe(lat, lat), 2, range(3))
    assert table.tolist() == [[2, -1], [-1, -1], [0, -1]]


def test_utm_serves_where_there_is_no_latitude():
    nothing = np.full(3, np.nan)
    split = Positions(nothing, nothing, [0.0, 100.0, 30.0], [0.0, 0.0, 0.0], np.arange(3))
    assert nearest_by_position(split, 2, range(3)).tolist() == [[2, 1], [2, 0], [0, 1]]


def test_no_position_at_all_is_a_sentence():
    with pytest.raises(
        DataError, match=r"which neighbours on the map need: set data\.order\.hard\.refresh"
    ):
        nearest_by_position(on_the_globe(np.full(3, np.nan), np.full(3, np.nan)), 2, range(3))


def test_a_saved_table_is_found_by_its_hash(tmp_path):
    samples = np.arange(12, dtype=np.int32).reshape(4, 3)
    sha256 = neighbours.save(tmp_path, np.split(samples, [1, 1, 3]), samples.shape)
    table = NeighbourTable.load(tmp_path, sha256)
    assert table.sha256 == sha256
    assert isinstance(table.samples, np.memmap)
    assert np.array_equal(table.samples, samples)
    assert neighbours.save(tmp_path, [samples.copy()], samples.shape) == sha256
    np.save(tmp_path / "plain.npy", samples)
    assert (tmp_path / "plain.npy").read_bytes() == (tmp_path / f"{sha256}.npy").read_bytes()


def test_a_damaged_or_missing_table_is_a_sentence(tmp_path):
    sha256 = neighbours.save(tmp_path, [np.zeros((4, 3), dtype=np.int32)], (4, 3))
    with pytest.raises(DataError, match=r"neighbour table .* can't be read"):
        NeighbourTable.load(tmp_path, "0" * 64)
    with (tmp_path / f"{sha256}.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(DataError, match="is damaged: bring back a whole copy"):
        NeighbourTable.load(tmp_path, sha256)


def test_prune_keeps_what_is_named(tmp_path):
    hashes = [neighbours.save(tmp_path, [np.full((2, 2), n)], (2, 2)) for n in range(3)]
    neighbours.prune(tmp_path, [hashes[1], ""])
    assert [path.name for path in tmp_path.iterdir()] == [f"{hashes[1]}.npy"]

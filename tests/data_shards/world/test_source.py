"""The world as a source: determinism, labels, places."""

import io
import multiprocessing
import pickle

import numpy as np
import pytest
from PIL import Image

from data_shards.format.classes import CLASS_NAMES
from data_shards.world.source import EXTENT_M, WorldSource

SMALL = WorldSource(seed=7, train=12, val=6, ground_size=(32, 128), aerial_size=64)


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_row_is_the_same_bytes_at_every_call_and_in_every_process():
    here = [SMALL.sample("val", row) for row in range(3)]
    assert [SMALL.sample("val", row) for row in (2, 1, 0)] == here[::-1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.starmap(
            pickle.loads(pickle.dumps(SMALL)).sample, [("val", row) for row in range(3)]
        )
    assert there == here


def test_the_row_count_does_not_change_a_row():
    longer = WorldSource(seed=7, train=400, val=200, ground_size=(32, 128), aerial_size=64)
    assert longer.sample("train", 5) == SMALL.sample("train", 5)


def test_seed_row_and_split_each_make_another_place():
    samples = [
        SMALL.sample("train", 0),
        SMALL.sample("train", 1),
        SMALL.sample("val", 0),
        WorldSource(8, 12, 6, ground_size=(32, 128), aerial_size=64).sample("train", 0),
    ]
    assert len({sample.parts["aerial.jpg"] for sample in samples}) == 4


def test_parts_have_the_sizes_and_modes_of_the_contract():
    parts = SMALL.sample("train", 3).parts
    assert decode(parts["ground.jpg"]).shape == (32, 128, 3)
    assert decode(parts["aerial.jpg"]).shape == (64, 64, 3)
    classes = Image.open(io.BytesIO(parts["seg.png"]))
    assert classes.mode == "L"
    assert np.asarray(classes).shape == (32, 128)


def test_class_maps_have_known_classes_and_the_common_ones_in_every_split():
    for split in ("train", "val"):
        maps = [decode(SMALL.sample(split, row).parts["seg.png"]) for row in range(6)]
        seen = set(np.unique(np.stack(maps)).tolist())
        assert seen <= set(CLASS_NAMES)
        assert {0, 1, 2, 3, 4, 5} <= seen


def test_train_and_val_lie_in_different_cities_and_no_two_places_coincide():
    metas = {
        split: [SMALL.sample(split, row).meta for row in range(plan.rows)]
        for split, plan in SMALL.splits.items()
    }
    cities = {
        split: {meta.source_id.split("-")[0] for meta in found} for split, found in metas.items()
    }
    assert len(cities["train"]) == 4
    assert cities["train"].isdisjoint(cities["val"])
    everywhere = metas["train"] + metas["val"]
    assert len({meta.source_id for meta in everywhere}) == 18
    assert len({(meta.lat, meta.lon) for meta in everywhere}) == 18
    for meta in everywhere:
        assert -80 < meta.lat < 84
        assert -180 <= meta.lon <= 180
        assert 160_000 < meta.utm[0] < 840_000


def test_utm_distances_equal_distances_on_the_globe():
    first, second = (SMALL.sample("val", row).meta for row in (0, 5))
    north = np.deg2rad(second.lat - first.lat) * 6_371_000
    east = np.deg2rad(second.lon - first.lon) * 6_371_000 * np.cos(np.deg2rad(first.lat))
    on_globe = np.hypot(east, north)
    in_utm = np.hypot(*np.subtract(second.utm, first.utm))
    assert on_globe > 200
    assert in_utm == pytest.approx(on_globe, rel=0.006)


def test_meta_states_the_nominal_geometry():
    meta = SMALL.sample("train", 0).meta
    assert meta.heading == 0.0
    assert meta.extent_m == EXTENT_M
    assert meta.elevation == (-32.75, 32.75)


@pytest.mark.parametrize(
    "wrong",
    [
        {"difficulty": "extreme"},
        {"ground_size": (64, 100)},
        {"ground_size": (4, 512)},
        {"aerial_size": 2},
        {"val": -1},
    ],
)
def test_wrong_options_are_refused_in_one_sentence(wrong):
    options = {"seed": 0, "train": 1, "val": 1} | wrong
    with pytest.raises(ValueError, match="must"):
        WorldSource(**options)

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError, run
from data_shards.build.dataset import build
from data_shards.cli import app
from data_shards.format.index import read_table
from data_shards.format.manifest import load
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import RejectedSample
from data_shards.inspect.verify import verify
from data_shards.sources.vigor import CITIES, VigorSource, read_labels, read_tiles

REAL = Path(__file__).resolve().parents[4] / "shared" / "real" / "splits"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real VIGOR lists at {REAL}")

TILES = 5


def tile(city, n):
    return f"satellite_{40 + CITIES.index(city)}.{n}_-87.{n}.png"


def panorama(city, n):
    return f"{city[:2]}-_{n},{40 + CITIES.index(city)}.25{n},-87.6,.jpg"


def line(city, n, tiles):
    offsets = [f"{tile(city, t)} {10.0 * t} -7.0" for t in tiles]
    return " ".join([panorama(city, n), *offsets])


@pytest.fixture
def raw(tmp_path, make_jpeg, make_png):
    """A VIGOR of four cities with five tiles and four panoramas each, two of them of one tile."""
    root = tmp_path / "vigor"
    lines = {
        "same_area_balanced_train": [(0, (1, 0, 2, 3)), (1, (1, 2, 0, 3))],
        "same_area_balanced_test": [(2, (4, 3, 2, 1)), (3, (0, 1, 2, 3))],
    }
    lines["pano_label_balanced"] = [*lines["same_area_balanced_train"], (2, (4, 3, 2, 1))]
    for city in CITIES:
        for folder in (f"splits/{city}", f"{city}/panorama", f"{city}/satellite"):
            (root / folder).mkdir(parents=True)
        for name, rows in lines.items():
            text = "\n".join(line(city, *row) for row in rows)
            (root / f"splits/{city}/{name}.txt").write_text(text)
        tiles = [tile(city, n) for n in range(TILES)]
        (root / f"splits/{city}/satellite_list.txt").write_bytes("\r\n".join(tiles).encode())
        for n, name in enumerate(tiles):
            picture = np.full((8, 8, 3), 10 * n + CITIES.index(city), np.uint8)
            (root / city / "satellite" / name).write_bytes(make_png(picture))
        for n in range(4):
            (root / city / "panorama" / panorama(city, n)).write_bytes(make_jpeg(8, 16, n))
    return root


def test_the_gallery_has_every_tile_of_every_city_once(raw):
    for area in ("same", "cross"):
        source = VigorSource(raw, area)
        plan = source.splits["aerial"]
        assert (plan.kind, plan.rows) == ("aerial", 4 * TILES)
        ids = [source.sample("aerial", row).meta.source_id for row in range(plan.rows)]
        assert ids == [f"{city}/{tile(city, n)}" for city in CITIES for n in range(TILES)]


def test_a_tile_has_its_position_and_its_extent(raw):
    sample = VigorSource(raw).sample("aerial", 2 * TILES + 3)
    assert sample.parts.keys() == {"aerial.png"}
    assert (sample.meta.lat, sample.meta.lon) == (42.3, -87.3)
    earth_m, zoom, tile_pixels = 2 * math.pi * 6378137, 20, 256
    metres_per_pixel = earth_m / tile_pixels / 2**zoom * math.cos(math.radians(42.3))
    assert sample.meta.extent_m == pytest.approx(640 * metres_per_pixel, rel=1e-4)
    assert (sample.meta.heading, sample.meta.elevation, sample.meta.positive) == (None, None, None)


def test_a_pair_is_a_panorama_and_its_positive_tile(raw):
    source = VigorSource(raw)
    sample = source.sample("train", 3)
    chicago, new_york = "Chicago", "NewYork"
    assert source.splits["train"].kind == "pairs"
    assert sample.meta.source_id == f"{new_york}/{panorama(new_york, 1)}"
    assert (sample.meta.lat, sample.meta.lon) == (41.251, -87.6)
    assert (sample.meta.heading, sample.meta.elevation) == (0.0, (-90.0, 90.0))
    assert (sample.meta.positive, sample.meta.semi_positives) == (5 + 1, (5 + 2, 5 + 0, 5 + 3))
    gallery = source.sample("aerial", sample.meta.positive)
    assert sample.parts["aerial.png"] == gallery.parts["aerial.png"]
    assert sample.meta.extent_m == gallery.meta.extent_m
    other = source.sample("train", 0)
    assert other.meta.source_id.startswith(f"{chicago}/")
    assert other.parts["aerial.png"] != sample.parts["aerial.png"]


def test_a_query_has_no_tile_but_names_its_tiles(raw):
    source = VigorSource(raw)
    sample = source.sample("test", 0)
    assert source.splits["test"].kind == "ground"
    assert sample.parts.keys() == {"ground.jpg"}
    assert (sample.meta.positive, sample.meta.semi_positives) == (4, (3, 2, 1))
    assert sample.meta.extent_m is None


def test_areas_are_the_published_ones(raw):
    def cities(source, split):
        rows = range(source.splits[split].rows)
        return {source.sample(split, row).meta.source_id.split("/")[0] for row in rows}

    same, cross = VigorSource(raw, "same"), VigorSource(raw, "cross")
    assert (same.splits["train"].rows, same.splits["test"].rows) == (8, 8)
    assert (cross.splits["train"].rows, cross.splits["test"].rows) == (6, 6)
    assert cities(same, "train") == cities(same, "test") == set(CITIES)
    assert cities(cross, "train") == {"NewYork", "Seattle"}
    assert cities(cross, "test") == {"Chicago", "SanFrancisco"}
    assert same.options() != cross.options()


@pytest.mark.parametrize(("asked", "area", "rows"), [([], "same", 8), (["cross"], "cross", 6)])
def test_the_command_builds_an_area_and_same_by_default(raw, tmp_path, asked, area, rows):
    out = tmp_path / "out"
    arguments = ["build", "vigor", "--root", raw, "--out", out, "--workers", 1]
    with pytest.raises(SystemExit, match="0"):
        run(app, list(map(str, [*arguments, *(f"--area={name}" for name in asked)])))
    manifest = load(out)
    assert manifest.source["area"] == area
    assert manifest.splits["train"].samples == manifest.splits["test"].samples == rows


def test_lists_are_read_however_they_were_saved(raw, tmp_path):
    before = VigorSource(raw)
    for path in (raw / "splits").rglob("*.txt"):
        lines = path.read_text().splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n".join(lines).encode() + b"\r\n")
    after = VigorSource(raw)
    assert after.splits == before.splits
    for split in before.splits:
        assert after.sample(split, 3) == before.sample(split, 3)
    excluded = (tile("Chicago", 1), panorama("Seattle", 0), panorama("Seattle", 1))
    (tmp_path / "list").write_text(",".join(f"some\\folder\\{name}" for name in excluded))
    assert VigorSource(raw, exclude=tmp_path / "list").splits["train"].rows == 8 - 2 - 2


def test_corrected_lists_come_first(raw):
    folder = raw / "splits__corrected" / "Seattle"
    folder.mkdir(parents=True)
    corrected = folder / "same_area_balanced_train__corrected.txt"
    corrected.write_text(line("Seattle", 0, (2, 3, 4, 0)) + "\n\n")
    source = VigorSource(raw)
    assert source.splits["train"].rows == 7
    assert source.sample("train", 6).meta.positive == 3 * TILES + 2
    listed = source.options()
    assert f"splits__corrected/Seattle/{corrected.name}_sha256" in listed
    assert "splits/Seattle/same_area_balanced_train.txt_sha256" not in listed
    assert "splits/Seattle/satellite_list.txt_sha256" in listed


def test_what_is_excluded_leaves_lists_gallery_and_labels(raw, tmp_path):
    names = [f"Chicago/satellite/{tile('Chicago', 1)}", panorama("Seattle", 0)]
    (tmp_path / "list").write_text("\n".join(names))
    source = VigorSource(raw, exclude=tmp_path / "list")
    assert {name: plan.rows for name, plan in source.splits.items()} == {
        "train": 8 - 2 - 1,
        "test": 8,
        "aerial": 4 * TILES - 1,
    }
    sample = source.sample("test", 0)
    assert (sample.meta.positive, sample.meta.semi_positives) == (3, (2, 1))
    assert source.sample("aerial", 3).meta.source_id == f"Chicago/{tile('Chicago', 4)}"


def test_rows_that_cannot_be_used_are_rejections(raw):
    (raw / "Chicago" / "panorama" / panorama("Chicago", 2)).unlink()
    (raw / "Chicago" / "satellite" / tile("Chicago", 1)).unlink()
    tiles = "\n".join(tile("NewYork", n) for n in (1, 2, 3))
    (raw / "splits/NewYork/satellite_list.txt").write_text(tiles)
    source = VigorSource(raw)
    for split, row, reason, named in (
        ("train", 0, "missing_file", f"Chicago/satellite/{tile('Chicago', 1)}"),
        ("test", 0, "missing_file", f"Chicago/panorama/{panorama('Chicago', 2)}"),
        ("test", 2, "unknown_tile", f"NewYork/{panorama('NewYork', 2)}"),
    ):
        with pytest.raises(RejectedSample, match=reason) as rejected:
            source.sample(split, row)
        assert named in rejected.value.detail


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("satellite_list", "satellite_1.0_2.0.jpg", "line 1 is not satellite_<lat>_<lon>.png"),
        ("satellite_list", "../satellite_1.0_2.0.png", "line 1 is not satellite"),
        ("same_area_balanced_train", "a,1,2,.jpg b 1 2", "line 1 is not <id>,<lat>,<lon>,.jpg and"),
        ("same_area_balanced_test", " ".join(["x.jpg"] * 13), "line 1 is not <id>"),
    ],
)
def test_broken_lists_are_one_sentence(raw, name, text, message):
    (raw / f"splits/NewYork/{name}.txt").write_text(f"{text}\n")
    with pytest.raises(InputError, match=message) as error:
        VigorSource(raw)
    assert f"splits/NewYork/{name}.txt" in str(error.value)


def test_a_missing_list_is_one_sentence(raw):
    (raw / "splits/Seattle/same_area_balanced_test.txt").unlink()
    with pytest.raises(InputError, match="is --root the folder of VIGOR") as error:
        VigorSource(raw)
    assert "splits/Seattle/same_area_balanced_test.txt" in str(error.value)
    assert VigorSource(raw, "cross").splits["test"].rows == 6


def test_a_hostile_panorama_does_not_lead_out_of_the_root(raw):
    (raw / "splits/Chicago/same_area_balanced_train.txt").write_text(
        line("Chicago", 0, (1, 0, 2, 3)).replace(panorama("Chicago", 0), "../../x,1.0,2.0,.jpg")
    )
    with pytest.raises(RejectedSample, match="outside_root"):
        VigorSource(raw).sample("train", 0)


@pytest.mark.parametrize("seed", [None, 3])
def test_labels_name_keys_of_the_gallery_whatever_the_order_and_the_rejections(raw, tmp_path, seed):
    (raw / "Chicago" / "satellite" / tile("Chicago", 0)).unlink()
    options = BuildOptions(samples_per_shard=3, seed=seed)
    out = tmp_path / "out"
    manifest = build(VigorSource(raw), out, options, workers=1)
    assert manifest.splits["aerial"].rejected == {"missing_file": 1}
    gallery = {
        row["key"]: row["source_id"] for row in read_table(out / "aerial/aerial.arrow").to_pylist()
    }
    for row in read_table(out / "test/test.arrow").to_pylist():
        city = row["source_id"].split("/")[0]
        named = [gallery.get(f"aerial-{row[column]:09d}") for column in COLUMNS]
        expected = (4, 3, 2, 1) if "_2," in row["source_id"] else (0, 1, 2, 3)
        assert named == [
            None if (city, n) == ("Chicago", 0) else f"{city}/{tile(city, n)}" for n in expected
        ]
    assert verify(out, workers=1).damages == []


COLUMNS = ("positive", "semi_positive_1", "semi_positive_2", "semi_positive_3")


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="ascii", exclude_characters=" ,\0"), min_size=1).filter(
                lambda text: text == "".join(text.split())
            ),
            st.decimals(-90, 90, places=6).filter(lambda d: "E" not in str(d)),
            st.lists(st.decimals(-90, 90, places=9), min_size=4, max_size=4),
        ),
        max_size=5,
    )
)
def test_lists_of_any_ids_and_positions_are_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("list") / "train.txt"
    written = [
        (f"{name},{lat:f},-87.5,.jpg", tuple(f"satellite_{t:f}_-87.5.png" for t in tiles))
        for name, lat, tiles in rows
    ]
    path.write_text(
        "".join(
            " ".join([pano, *itertools.chain(*((t, "1.0", "-2.0") for t in tiles))]) + "\n"
            for pano, tiles in written
        ),
        encoding="utf-8",
    )
    assert [tuple(label) for label in read_labels(path)] == written


@needs_real
def test_the_real_lists(tmp_path):
    tiles = read_tiles(REAL / "vigor-chicago-satellite_list.txt")
    assert (len(tiles), len(set(tiles))) == (200, 200)
    assert tiles[0] == "satellite_41.85205407245264_-87.69119741060825.png"
    for split in ("train", "test"):
        path = REAL / f"vigor-chicago-same_area_balanced_{split}__corrected.txt"
        labels = read_labels(path)
        assert len({label.panorama for label in labels}) == 200
        assert {len(set(label.tiles)) for label in labels} == {4}
        for label, text in zip(labels, path.read_text().splitlines(), strict=True):
            offsets = np.array([float(field) for field in text.split()[2:4]])
            lat, lon = map(float, label.panorama.split(",")[1:3])
            tile_lat, tile_lon = map(float, label.tiles[0][10:-4].split("_"))
            metres = np.array([tile_lat - lat, (tile_lon - lon) * math.cos(math.radians(lat))])
            pixels = metres * math.pi / 180 * 6378137 / (0.14929 * math.cos(math.radians(lat)))
            np.testing.assert_allclose(pixels, offsets, atol=3)

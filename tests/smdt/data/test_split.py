"""Opening splits: what the index says, places, and one clear sentence for what is wrong."""

import json
import shutil
from io import BytesIO
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from data_shards.base.errors import DataError, DataInputError
from data_shards.build.dataset import build
from data_shards.format import layout
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, Sample
from data_shards.sources.source import SplitPlan
from smdt.data.split import Split


def test_a_split_says_what_the_source_said(built):
    split = Split.open(str(built), "train")
    assert (len(split), split.kind, split.name, split.root) == (60, "pairs", "train", built)
    assert split.key(42) == "train-000000042"
    assert split.source_id(np.int64(42)) == "train.42"
    assert split.tar(42) == built / "train" / "train-000002.tar"
    assert split.column("heading").tolist() == list(range(60))
    assert len(split.manifest_hash) == 64


def test_a_column_is_the_mapped_file(built):
    split = Split.open(built, "train")
    column = split.column("ground_offset")
    assert not column.flags.owndata
    assert not column.flags.writeable
    assert column is split.column("ground_offset")


def test_a_column_points_at_the_parts_bytes(built):
    split = Split.open(built, "val")
    start = split.column("aerial_offset")[7]
    size = split.column("aerial_size")[7]
    data = split.tar(7).read_bytes()[start : start + size]
    assert data.startswith(b"\xff\xd8")
    assert data.endswith(b"\xff\xd9")


def test_places_are_shared_by_equal_coordinates_only(built):
    split = Split.open(built, "train")
    assert split.places.dtype == np.int64
    coordinates = list(zip(split.column("lat").tolist(), split.column("lon"), strict=True))
    for i, a in enumerate(coordinates):
        for j, b in enumerate(coordinates):
            same = i == j or a == b  # NaN equals nothing
            assert (split.places[i] == split.places[j]) == same


def test_a_sample_of_a_data_set_without_tiles_shows_its_own_place_alone(built):
    split = Split.open(built, "train")
    ids = np.array([5, 0, 59])
    assert split.shown(ids).tolist() == [[split.places[i]] for i in ids]


class Overlapping:
    """Pairs whose panoramas belong to neighbouring tiles too; tile 100 is nobody's positive."""

    name = "overlapping"
    splits: ClassVar = {"train": SplitPlan("pairs", 6)}
    tiles: ClassVar = [(7, 9, 100), (9,), (7, 3), (3, 100, 9, 7), (), (20, 21)]

    def sample(self, split: str, row: int) -> Sample:
        picture = BytesIO()
        Image.new("RGB", (16, 16), (row, 0, 0)).save(picture, "JPEG")
        positive = self.tiles[row][0] if self.tiles[row] else None
        meta = Meta(f"{row}", positive=positive, semi_positives=self.tiles[row][1:])
        return Sample(meta, {"ground.jpg": picture.getvalue(), "aerial.jpg": picture.getvalue()})

    def options(self) -> dict[str, object]:
        return {}


def test_a_sample_shows_the_places_of_its_semi_positive_tiles(tmp_path):
    build(Overlapping(), tmp_path / "overlapping", BuildOptions(), workers=1)
    split = Split.open(tmp_path / "overlapping", "train")
    place_of_tile = {
        tiles[0]: int(split.places[i]) for i, tiles in enumerate(Overlapping.tiles) if tiles
    }
    for sample, (own, *others) in enumerate(split.shown(np.arange(6)).tolist()):
        assert own == split.places[sample]
        expected = {place_of_tile.get(tile, -1) for tile in Overlapping.tiles[sample][1:]}
        assert {place for place in others if place >= 0} == expected - {-1}


@pytest.mark.parametrize(
    ("damage", "name", "kind", "message"),
    [
        (lambda root: shutil.rmtree(root), "train", DataInputError, "no folder"),
        (lambda root: (root / "manifest.json").unlink(), "train", DataInputError, "manifest.json"),
        (lambda _: None, "tokyo", DataInputError, "no split 'tokyo', it has gallery, train, val"),
        (
            lambda root: layout.table_path(root, "train").unlink(),
            "train",
            DataError,
            "train.arrow is missing",
        ),
        (
            lambda root: layout.table_path(root, "train").write_bytes(b"ARROW1 no more"),
            "train",
            DataError,
            "train.arrow is damaged",
        ),
        (
            lambda root: (root / "manifest.json").write_text('{"format_version": 99}'),
            "train",
            DataInputError,
            "99.*update",
        ),
        (
            lambda root: shutil.copy(
                layout.table_path(root, "val"), layout.table_path(root, "train")
            ),
            "train",
            DataError,
            "has 23 samples, its manifest says 60",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(shards, damage, name, kind, message):
    damage(shards)
    with pytest.raises(DataError, match=message) as caught:
        Split.open(shards, name)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_an_index_with_a_changed_byte_is_refused_before_it_is_read(shards, place):
    path = layout.table_path(shards, "train")
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.arrow is damaged .* finalize"):
        Split.open(shards, "train")


def test_a_folder_of_tars_that_can_not_be_listed_is_not_an_empty_one(shards):
    split = Split.open(shards, "train")
    shutil.rmtree(shards / "train")
    (shards / "train").symlink_to("train")
    with pytest.raises(DataError, match="train can't be read"):
        split.require_tars(0, "limit")


class Shapes(Overlapping):
    """Pairs of given sizes (height and width) as shards of an older version may hold them."""

    splits: ClassVar = {"train": SplitPlan("pairs", 3)}

    def sample(self, split: str, row: int) -> Sample:
        parts = {}
        for name, size in (
            ("ground.png", (16, 64)),
            ("aerial.png", (16, 16)),
            ("seg.png", (16, 64)),
        ):
            picture = BytesIO()
            Image.new("L", size[::-1]).save(picture, "PNG")
            parts[name] = picture.getvalue()
        return Sample(Meta(f"city/{row}", elevation=(-45.0, 45.0)), parts)


@pytest.mark.parametrize(
    ("column", "value", "refused"),
    [
        ("aerial_width", 24, r"1 tiles that are not square, .* city/1 with 24x16 pixels: crop"),
        ("seg_height", 8, r"1 class maps of another size .* city/1 with 64x8 pixels"),
    ],
)
def test_shapes_of_the_index_are_compared(tmp_path, column, value, refused):
    build(Shapes(), tmp_path, BuildOptions(), workers=1)
    split = Split.open(tmp_path, "train")
    views = ("ground", "aerial", "seg")
    split.require_views(views)
    assert split.elevation_warning(None) == ""
    changed = np.array(split.column(column))
    changed[1] = value
    split._columns[column] = changed
    with pytest.raises(DataInputError, match=refused):
        split.require_views(views)


def test_exit_codes_tell_input_from_failure():
    assert DataInputError.exit_code == 2
    assert DataError.exit_code == 1


def test_the_manifests_hash_changes_with_the_data(shards):
    before = Split.open(shards, "train").manifest_hash
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"name": "other"}))
    assert Split.open(shards, "train").manifest_hash != before


def test_missing_tars_are_counted_by_what_is_out_of_reach(shards):
    split = Split.open(shards, "train")
    split.require_tars(0, "limit")
    with split.tar(20).open("r+b") as file:
        file.truncate(split.column("ground_offset")[35])
    split.require_tars(5, "limit")
    with pytest.raises(DataError, match=r"1 of 3 tars.*train-000001\.tar: 5 samples.*limit=4"):
        split.require_tars(4, "limit")
    split.tar(0).unlink()
    with pytest.raises(DataError, match=r"2 of 3 tars.*train-000000\.tar: 25 samples"):
        split.require_tars(24, "limit")

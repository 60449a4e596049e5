"""Shapes of images against what is said of them: published shapes pass, impossible ones do not."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from data_shards.build.dataset import build
from data_shards.format.aspect import ELEVATION_TOLERANCE, elevation_warning, stretch_of
from data_shards.format.index import read_table
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, Sample
from data_shards.sources.source import SplitPlan

NAN = float("nan")


def index(*rows):
    """Rows of (height, width, lowest, highest)."""
    height, width, low, high = (np.array(column, float) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "source_id": [f"city/{row}" for row in range(len(rows))],
            "ground_height": height.astype(np.int32),
            "ground_width": width.astype(np.int32),
            "elevation_min": low,
            "elevation_max": high,
        }
    )


@pytest.mark.parametrize(
    "row",
    [
        (224, 1232, -32.75, 32.75),  # CVUSA
        (128, 512, -32.75, 32.75),  # its training size, and the made world's
        (416, 1664, -45.0, 45.0),  # CVACT, cut
        (1024, 2048, -90.0, 90.0),  # VIGOR
        (320, 640, -90.0, 90.0),
        (0, 0, NAN, NAN),  # a tile of a gallery
        (1024, 2048, NAN, NAN),
    ],
)
def test_published_panoramas_pass(row):
    assert elevation_warning(index(row)) == ""


def test_panoramas_of_another_field_of_view_are_named():
    good, bad = (224, 1232, -32.75, 32.75), (1024, 2048, -32.75, 32.75)
    unknown = (512, 1024, NAN, NAN)
    said = elevation_warning(index(good, bad, unknown))
    assert "1 of 3" in said
    assert "city/1 has 2048x1024 pixels, which is 180.0 degrees" in said
    assert "\n" not in said
    said = elevation_warning(index(good, unknown), (-32.75, 32.75))
    assert "city/1 has 1024x512" in said
    assert elevation_warning(index(unknown), (-90.0, 90.0)) == ""


@given(st.integers(8, 900), st.integers(8, 3000), st.floats(1, 180))
def test_a_warning_is_about_the_ratio_alone(height, width, degrees):
    shown = 360 * height / width
    ratio = max(shown / degrees, degrees / shown)
    if abs(ratio - ELEVATION_TOLERANCE) > 1e-6:
        row = (height, width, -degrees / 2, degrees / 2)
        assert bool(elevation_warning(index(row))) == (ratio > ELEVATION_TOLERANCE)


@given(*[st.integers(1, 5000)] * 4)
def test_stretch_has_no_direction(a, b, c, d):
    assert stretch_of((a, b), (c, d)) == pytest.approx(stretch_of((c, d), (a, b)))
    assert stretch_of((a, b), (b, a)) == pytest.approx(stretch_of((b, a), (a, b)))
    assert stretch_of((a, b), (a, b)) == 1.0


@dataclass
class Pairs:
    """Three pairs, of which the second has another tile."""

    jpeg: object
    tile: tuple = (48, 48)
    panorama: tuple = (32, 128)
    elevation: tuple | None = None
    name = "pairs"

    @property
    def splits(self):
        return {"train": SplitPlan("pairs", 3)}

    def options(self):
        return {}

    def sample(self, split, row):
        tile = self.tile if row == 1 else (48, 48)
        parts = {"ground.jpg": self.jpeg(*self.panorama), "aerial.jpg": self.jpeg(*tile)}
        return Sample(Meta(f"{split}/{row}", elevation=self.elevation), parts)


@pytest.mark.parametrize("side", [None, 24, 48])
def test_a_tile_that_is_not_square_is_left_out_with_its_name(tmp_path, make_jpeg, side):
    options = BuildOptions(aerial_size=side)
    manifest = build(Pairs(make_jpeg, tile=(48, 64)), tmp_path, options, workers=1)
    assert manifest.splits["train"].rejected == {"not_square": 1}
    assert read_table(tmp_path / "train" / "train.arrow")["source_id"].to_pylist() == [
        "train/0",
        "train/2",
    ]
    line = (tmp_path / "rejected.jsonl").read_text()
    assert "aerial.jpg of train/1 has 64 x 48 pixels, not square: crop it." in line


def test_a_size_of_another_shape_is_refused_before_the_build(tmp_path, make_jpeg, caplog):
    def of(*size):
        out = tmp_path / f"{size}"
        build(Pairs(make_jpeg), out, BuildOptions(ground_size=size), workers=1)
        return out

    with pytest.raises(InputError, match=r"size 128x32 .* by 16\.0 .* train/0 with 32x128"):
        of(128, 32)
    assert list(tmp_path.iterdir()) == []
    with caplog.at_level(logging.WARNING):
        of(16, 64)
        assert caplog.text == ""
        of(32, 64)
    assert "by 2.0 in one direction, the first is train/0 with 32x128." in caplog.text


def test_a_build_warns_of_elevations_that_can_not_be_right(tmp_path, make_jpeg, caplog):
    source = Pairs(make_jpeg, panorama=(64, 128), elevation=(-32.75, 32.75))
    build(source, tmp_path, workers=1)
    assert "split train: 3 of 3 panoramas" in caplog.text

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_shards.base.errors import InputError
from data_shards.build.dataset import build
from data_shards.format.index import read_table
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import RejectedSample
from data_shards.inspect.verify import verify
from data_shards.sources.cvact import CvactSource

REAL = Path(__file__).resolve().parents[4] / "shared" / "real" / "cvact"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real CVACT images at {REAL}")

IDS = ["aaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbb", "cccccccccccccccccccccc", "d"]
UTM = np.array([[696000.25, 6093000.5], [696004, 6093003], [697000, 6094000], [698000, 6095000]])


def column(*rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 1)


def write_table(root, train=(1, 3), val=(2,), test=(2, 4), **others):
    """`ACT_data.mat` with CVACT's structure: ids as a char matrix, rows from 1."""
    table = {
        "panoIds": np.array(IDS),
        "utm": UTM,
        "trainSet": {"trainUtm": UTM[:1], "trainInd": column(*train)},
        "valSet": {"valUtm": UTM[:1], "valInd": column(*val)},
        "valSetAll": {"valUtm": UTM[:1], "valInd": column(*test)},
    }
    savemat(root / "ACT_data.mat", table | others)


@pytest.fixture
def raw(tmp_path, make_jpeg):
    """A CVACT of four places: `c` has no panorama, `d` is only in the large test set."""
    root = tmp_path / "cvact"
    for seed, (folder, pano_id) in enumerate(
        [*(("ANU_data_small", pano_id) for pano_id in IDS[:3]), ("ANU_data_test", IDS[3])]
    ):
        for view in ("streetview", "satview_polish"):
            (root / folder / view).mkdir(parents=True, exist_ok=True)
        (root / folder / f"streetview/{pano_id}_grdView.jpg").write_bytes(make_jpeg(832, 16, seed))
        (root / folder / f"satview_polish/{pano_id}_satView_polish.jpg").write_bytes(
            make_jpeg(24, 24, seed)
        )
    (root / f"ANU_data_small/streetview/{IDS[2]}_grdView.jpg").unlink()
    write_table(root)
    return root


def test_a_pair_with_what_is_known_of_every_pair(raw):
    source = CvactSource(raw)
    sample = source.sample("train", 0)
    assert {name: plan.rows for name, plan in source.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 2,
    }
    assert {plan.kind for plan in source.splits.values()} == {"pairs"}
    assert sample.meta.source_id == IDS[0]
    assert sample.meta.utm == (696000.25, 6093000.5)
    assert (sample.meta.lat, sample.meta.lon, sample.meta.extent_m) == (None, None, 144.0)
    assert (sample.meta.heading, sample.meta.elevation) == (0.0, (-45.0, 45.0))
    small = raw / "ANU_data_small"
    assert sample.parts == {
        "ground.jpg": (small / f"streetview/{IDS[0]}_grdView.jpg").read_bytes(),
        "aerial.jpg": (small / f"satview_polish/{IDS[0]}_satView_polish.jpg").read_bytes(),
    }
    assert dict(sample.crops) == {"ground": (208, 624, 832)}


def test_test_images_come_from_the_large_set_or_else_the_small_one(raw):
    source = CvactSource(raw)
    both, large = (source.sample("test", row) for row in range(2))
    assert [both.meta.source_id, large.meta.source_id] == [IDS[1], IDS[3]]
    copy = raw / "ANU_data_test" / "streetview" / f"{IDS[1]}_grdView.jpg"
    copy.write_bytes(b"another")
    assert source.sample("test", 0).parts["ground.jpg"] == b"another"
    assert source.sample("val", 0).parts["ground.jpg"] != b"another"


def test_a_missing_image_is_a_rejection_that_names_where_it_belongs(raw):
    with pytest.raises(RejectedSample, match="missing_file") as rejected:
        CvactSource(raw).sample("train", 1)
    assert f"ANU_data_small/streetview/{IDS[2]}_grdView.jpg" in rejected.value.detail
    (raw / "ANU_data_test" / "streetview" / f"{IDS[3]}_grdView.jpg").unlink()
    with pytest.raises(RejectedSample, match="missing_file") as rejected:
        CvactSource(raw).sample("test", 1)
    assert f"ANU_data_test/streetview/{IDS[3]}_grdView.jpg" in rejected.value.detail


def test_shards_have_the_rows_that_cvact_uses_at_any_size(raw, tmp_path, make_png):
    ramp = np.repeat(np.arange(832) // 4, 16).reshape(832, 16).astype(np.uint8)
    for path in raw.glob("ANU_data_*/streetview/*.jpg"):
        path.write_bytes(make_png(np.stack([ramp] * 3, axis=2)))
    for size, expected in ((None, ramp[208:624, 0]), ((104, 4), np.arange(52, 156))):
        out = tmp_path / str(size)
        manifest = build(CvactSource(raw), out, BuildOptions(ground_size=size), workers=1)
        assert manifest.encoder is not None
        with tarfile.open(out / "train" / "train-000000.tar") as tar:
            stored = np.asarray(Image.open(tar.extractfile("train-000000000.ground.jpg")))
        np.testing.assert_allclose(stored.mean(axis=(1, 2)), expected, atol=2)


def test_a_split_without_rows_is_left_out(raw):
    write_table(raw, val=(), test=())
    assert set(CvactSource(raw).splits) == {"train"}
    write_table(raw, train=(), val=(), test=())
    with pytest.raises(InputError, match="has no rows"):
        CvactSource(raw)


@pytest.mark.parametrize("line", ["{}", "{}_grdView.jpg", "satview_polish/{}_satView_polish.jpg"])
def test_excluded_ids_are_left_out_of_every_split(raw, tmp_path, line):
    (tmp_path / "list").write_text(line.format(IDS[1]) + "\n")
    source = CvactSource(raw, tmp_path / "list")
    assert {name: plan.rows for name, plan in source.splits.items()} == {
        "train": 2,
        "val": 0,
        "test": 1,
    }
    assert source.sample("test", 0).meta.source_id == IDS[3]
    assert source.options() != CvactSource(raw).options()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": (0,)}, "rows of train outside 1 to 4"),
        ({"test": (5,)}, "rows of test outside 1 to 4"),
        ({"utm": UTM[:3]}, "not an easting and northing each"),
        ({"utm": np.full((4, 2), np.nan)}, "not an easting and northing each"),
        ({"valSet": {"other": 1}}, "is not CVACT's table: no 'valInd'"),
    ],
)
def test_another_table_is_one_sentence(raw, change, message):
    write_table(raw, **change)
    with pytest.raises(InputError, match=message):
        CvactSource(raw)


def test_what_is_no_table_is_one_sentence(raw):
    (raw / "ACT_data.mat").write_bytes(b"noise" * 100)
    with pytest.raises(InputError, match="is not CVACT's table") as error:
        CvactSource(raw)
    assert "\n" not in str(error.value)
    (raw / "ACT_data.mat").unlink()
    with pytest.raises(InputError, match="is --root the folder of CVACT"):
        CvactSource(raw)


def test_a_hostile_id_does_not_lead_out_of_the_root(raw):
    ids = [f"../../../{'x' * 13}", *IDS[1:]]
    write_table(raw, panoIds=np.array(ids))
    with pytest.raises(RejectedSample, match="outside_root"):
        CvactSource(raw).sample("train", 0)


@needs_real
@pytest.mark.slow
def test_the_real_thing(tmp_path):
    manifest = build(CvactSource(REAL), tmp_path / "out", workers=1)
    assert {name: (s.samples, s.rows) for name, s in manifest.splits.items()} == {
        "train": (1, 2),
        "val": (1, 1),
        "test": (2, 2),
    }
    (rejection,) = map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())
    assert (rejection["split"], rejection["row"], rejection["reason"]) == (
        "train",
        1,
        "missing_file",
    )
    assert "ANU_data_small/streetview/missing_on_purpose_000_grdView.jpg" in rejection["detail"]
    (row,) = read_table(tmp_path / "out/train/train.arrow").to_pylist()
    assert (row["ground_height"], row["ground_width"]) == (416, 1664)
    assert (row["aerial_height"], row["aerial_width"]) == (1200, 1200)
    assert (row["utm_e"], row["utm_n"]) == (696000.25, 6093000.5)
    with tarfile.open(tmp_path / "out/train/train-000000.tar") as tar:
        panorama = Image.open(tar.extractfile("train-000000000.ground.jpg"))
        panorama.load()
        aerial = tar.extractfile("train-000000000.aerial.jpg").read()
    original = np.asarray(
        Image.open(REAL / f"ANU_data_small/streetview/{row['source_id']}_grdView.jpg")
    )
    difference = np.asarray(panorama).astype(float) - original[208:624]
    assert np.sqrt((difference**2).mean()) < 5
    folder = REAL / "ANU_data_small/satview_polish"
    assert aerial == (folder / f"{row['source_id']}_satView_polish.jpg").read_bytes()
    assert verify(tmp_path / "out", workers=1).damages == []

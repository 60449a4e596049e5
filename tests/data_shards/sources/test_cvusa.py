import io
import json
import math
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.base.errors import InputError
from data_shards.build.dataset import build
from data_shards.format.index import read_table
from data_shards.format.sample import RejectedSample
from data_shards.inspect.verify import verify
from data_shards.sources.cvusa import CvusaSource

REAL = Path(__file__).resolve().parents[4] / "shared" / "real" / "cvusa"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real CVUSA images at {REAL}")


@pytest.fixture
def raw(tmp_path, make_jpeg, make_png):
    """A CVUSA of three pairs: 1 without, 2 with an annotation; 3 has no panorama."""
    root = tmp_path / "cvusa"
    lists = {"train": [1, 2], "val": [3]}
    for folder in ("splits", "bingmap/19", "streetview/panos", "streetview/annotations"):
        (root / folder).mkdir(parents=True)
    for split, ids in lists.items():
        lines = [
            f"bingmap/19/{i:07d}.jpg,streetview/panos/{i:07d}.jpg,"
            f"streetview/annotations/{i:07d}.png"
            for i in ids
        ]
        (root / "splits" / f"{split}-19zl.csv").write_text("\n".join(lines) + "\n")
        for i in ids:
            (root / f"bingmap/19/{i:07d}.jpg").write_bytes(make_jpeg(30, 30, i))
            (root / f"streetview/panos/{i:07d}.jpg").write_bytes(make_jpeg(8, 44, i))
    (root / "streetview/panos/0000003.jpg").unlink()
    labels = (np.arange(8 * 44) % 6).astype(np.uint8).reshape(8, 44)
    (root / "streetview/annotations/0000002.png").write_bytes(make_png(labels))
    return root


def locate(raw, lines):
    (raw / "split_locations").mkdir(exist_ok=True)
    (raw / "split_locations" / "all.csv").write_text("\n".join(lines) + "\n")


def test_a_pair_with_what_is_known_of_every_pair(raw):
    source = CvusaSource(raw)
    sample = source.sample("train", 0)
    assert {name: plan.rows for name, plan in source.splits.items()} == {"train": 2, "val": 1}
    assert sample.meta.source_id == "0000001"
    assert (sample.meta.heading, sample.meta.elevation) == (0.0, (-32.75, 32.75))
    assert (sample.meta.lat, sample.meta.extent_m) == (None, 172.0)
    assert sample.parts["aerial.jpg"] == (raw / "bingmap/19/0000001.jpg").read_bytes()
    assert "seg.png" not in sample.parts


def test_annotations_come_in_our_ids(raw):
    data = CvusaSource(raw).sample("train", 1).parts["seg.png"]
    labels = np.asarray(Image.open(io.BytesIO(data)))
    original = (np.arange(8 * 44) % 6).reshape(8, 44)
    np.testing.assert_array_equal(labels, np.where(original <= 3, original, 255))


def test_an_annotation_of_two_bits_is_rejected(raw):
    """What decoders make of its ids, 0 to 3, is 0, 85, 170, 255."""
    path = raw / "streetview/annotations/0000002.png"
    labels = Image.open(path).point(lambda value: value % 4).convert("P")
    labels.save(path, bits=2)
    palette = bytearray(path.read_bytes())
    assert (palette[24], palette[25]) == (2, 3)
    palette[25] = 0  # grey
    palette[29:33] = zlib.crc32(palette[12:29]).to_bytes(4, "big")
    path.write_bytes(palette)
    with pytest.raises(RejectedSample, match="bad_class_map"):
        CvusaSource(raw).sample("train", 1)


@pytest.mark.parametrize("null", ["", "NA", " None", "n/a"])
def test_lists_are_read_however_they_were_saved(raw, null):
    path = raw / "splits/train-19zl.csv"
    lines = [
        "bingmap\\19\\0000001.jpg, streetview\\panos\\0000001.jpg, x.png",
        f'"bingmap/19/0000002.jpg", "streetview/panos/0000002.jpg",{null}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    locate(raw, ["\ufeff10,20", "", "NA,NA"])
    source = CvusaSource(raw)
    first, second = (source.sample("train", row) for row in range(2))
    assert (first.meta.source_id, first.meta.lat, first.meta.lon) == ("0000001", 10.0, 20.0)
    assert (second.meta.source_id, second.meta.lat, second.meta.extent_m) == ("0000002", None, 172)
    assert set(second.parts) == {"aerial.jpg", "ground.jpg"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"48,1",11', r"line 2: latitude is '48,1', not a finite number: write 48\.1"),
        ("48,inf", "line 2: longitude is 'inf', not a finite number"),
        ("48,-180.5", r"line 2: longitude is -180\.5, outside -180 to 180 degrees"),
        ("48", "line 2 has no latitude and longitude"),
    ],
)
def test_a_bad_location_is_named_by_line_and_column(raw, line, said):
    locate(raw, ["1,2", line])
    with pytest.raises(InputError, match=said):
        CvusaSource(raw)


def test_row_n_of_the_locations_is_image_n(raw):
    locate(raw, ["10.0,20.0,10.1,20.1,77", "60.0,-120.0,0,0,0"])
    source = CvusaSource(raw)
    first, second = (source.sample("train", row).meta for row in range(2))
    assert (first.lat, first.lon, first.heading) == (10.0, 20.0, 0.0)
    assert (second.lat, second.lon) == (60.0, -120.0)
    assert second.extent_m == pytest.approx(750 * 0.2986 * math.cos(math.pi / 3))


def test_a_missing_panorama_is_a_rejection(raw):
    with pytest.raises(RejectedSample, match="missing_file") as rejected:
        CvusaSource(raw).sample("val", 0)
    assert "panos/0000003.jpg" in rejected.value.detail


@pytest.mark.parametrize("line", ["0000002", "2", "bingmap/19/0000002.jpg"])
def test_excluded_ids_are_left_out(raw, tmp_path, line):
    (tmp_path / "list").write_text(f"{line}\n")
    source = CvusaSource(raw, tmp_path / "list")
    assert source.splits["train"].rows == 1
    assert source.sample("train", 0).meta.source_id == "0000001"
    assert source.options() != CvusaSource(raw).options()


@pytest.mark.parametrize("escape", ["../../etc/passwd", "/etc/passwd", "a\0b"])
def test_paths_out_of_the_root_are_rejected(raw, escape):
    (raw / "splits" / "val-19zl.csv").write_text(f"{escape},streetview/panos/0000001.jpg,x\n")
    with pytest.raises(RejectedSample, match="outside_root"):
        CvusaSource(raw).sample("val", 0)


def test_broken_lists_are_one_sentence(raw, tmp_path):
    with pytest.raises(InputError, match="exclusion list"):
        CvusaSource(raw, tmp_path / "nowhere")
    locate(raw, ["10.0,20.0", "north,west"])
    with pytest.raises(InputError, match="split_locations"):
        CvusaSource(raw)
    locate(raw, ["10.0,20.0", "200.0,20.0"])
    with pytest.raises(InputError, match=r"line 2: latitude is 200\.0, outside -90 to 90"):
        CvusaSource(raw)
    shutil.rmtree(raw / "split_locations")
    (raw / "splits" / "val-19zl.csv").write_text("a,b,c\na,b,c,d\n")
    with pytest.raises(InputError, match="line 2 has 4 fields"):
        CvusaSource(raw)
    (raw / "splits" / "val-19zl.csv").unlink()
    with pytest.raises(InputError, match="is --root the folder of CVUSA"):
        CvusaSource(raw)


@needs_real
def test_the_real_thing(tmp_path):
    manifest = build(CvusaSource(REAL), tmp_path / "out", workers=1)
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 11,
        "val": 6,
    }
    assert all(split.rejected == {} for split in manifest.splits.values())
    rows = [
        row
        for split in ("train", "val")
        for row in read_table(tmp_path / "out" / split / f"{split}.arrow").to_pylist()
    ]
    assert sum(row["seg_size"] > 0 for row in rows) == 5
    assert {(row["aerial_height"], row["ground_width"]) for row in rows} == {(750, 1232)}
    located = [row for row in rows if not math.isnan(row["lat"])]
    assert len(located) == 12
    assert all(100 < row["extent_m"] < 225 for row in rows)
    with tarfile.open(tmp_path / "out" / "train" / "train-000000.tar") as tar:
        meta = json.load(tar.extractfile("train-000000000.meta.json"))
        aerial = tar.extractfile("train-000000000.aerial.jpg").read()
    assert meta["source_id"] == "9000000"
    assert aerial == (REAL / "bingmap/19/9000000.jpg").read_bytes()
    assert verify(tmp_path / "out", workers=1).damages == []

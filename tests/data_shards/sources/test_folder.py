import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from data_shards.base.errors import InputError
from data_shards.format.sample import Meta, RejectedSample
from data_shards.sources.folder import FolderSource


@pytest.fixture
def raw(tmp_path, make_jpeg, make_png):
    (tmp_path / "g.jpg").write_bytes(make_jpeg(8, 16))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.b.png").write_bytes(make_png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "l.png").write_bytes(make_png(np.zeros((8, 16), np.uint8)))
    return tmp_path


def table(raw, text, name="train.csv"):
    (raw / name).write_text(text)
    return FolderSource(raw)


def test_a_pair_with_everything(raw):
    source = table(
        raw,
        "ground,aerial,label,lat,lon,heading,extent\n"
        "g.jpg,sub/a.b.png,l.png,1.5,-2,90,100\n"
        "g.jpg,sub/a.b.png,,,,,\n",
    )
    full, bare = source.sample("train", 0), source.sample("train", 1)
    assert source.splits["train"].kind == "pairs"
    assert set(full.parts) == {"ground.jpg", "aerial.png", "seg.png"}
    meta = full.meta
    assert (meta.lat, meta.lon, meta.heading, meta.extent_m) == (1.5, -2.0, 90.0, 100.0)
    assert set(bare.parts) == {"ground.jpg", "aerial.png"}
    assert (bare.meta.lat, bare.meta.heading, bare.meta.source_id) == (None, None, "g.jpg")


def test_every_table_is_a_split_and_without_ground_a_gallery(raw):
    pq.write_table(pa.table({"aerial": ["sub/a.b.png"], "lat": [3]}), raw / "gallery.parquet")
    source = table(raw, "ground,aerial\ng.jpg,sub/a.b.png\n")
    assert {name: plan.kind for name, plan in source.splits.items()} == {
        "train": "pairs",
        "gallery": "aerial",
    }
    sample = source.sample("gallery", 0)
    assert (set(sample.parts), sample.meta.lat) == ({"aerial.png"}, 3.0)
    assert sample.meta.source_id == "sub/a.b.png"


def test_without_aerial_a_split_is_queries(raw):
    pq.write_table(pa.table({"ground": ["g.jpg"], "lon": [4.5]}), raw / "queries.parquet")
    source = table(raw, "ground,label\ng.jpg,l.png\n", "labelled.csv")
    assert {plan.kind for plan in source.splits.values()} == {"ground"}
    sample = source.sample("queries", 0)
    assert (set(sample.parts), sample.meta.lon) == ({"ground.jpg"}, 4.5)
    assert sample.meta.source_id == "g.jpg"
    assert set(source.sample("labelled", 0).parts) == {"ground.jpg", "seg.png"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_csv_and_parquet_give_the_same_samples(raw, suffix):
    rows = {
        "ground": ["g.jpg", "g.jpg"],
        "aerial": ["sub/a.b.png", "sub/a.b.png"],
        "label": ["l.png", None],
        "lat": [1.5, None],
        "lon": [-2.0, None],
        "heading": [90.0, None],
        "extent": [100.0, None],
    }
    if suffix == "csv":
        pa_csv.write_csv(pa.table(rows), raw / "train.csv")
    else:
        pq.write_table(pa.table(rows), raw / "train.parquet")
    full, bare = (FolderSource(raw).sample("train", row) for row in range(2))
    assert full.meta == Meta("g.jpg", lat=1.5, lon=-2.0, heading=90.0, extent_m=100.0)
    assert bare.meta == Meta("g.jpg")
    assert set(full.parts) - set(bare.parts) == {"seg.png"}


def test_nan_is_unknown_in_every_format(raw):
    columns = {"aerial": ["sub/a.b.png"], "lat": [float("nan")]}
    pq.write_table(pa.table(columns), raw / "gallery.parquet")
    source = table(raw, "aerial,lat\nsub/a.b.png,nan\n")
    assert source.sample("train", 0).meta.lat is source.sample("gallery", 0).meta.lat is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../../etc/passwd,sub/a.b.png,1", "outside_root"),
        ("sub/../../x.jpg,sub/a.b.png,1", "outside_root"),
        ("/etc/passwd,sub/a.b.png,1", "outside_root"),
        ("no.jpg,sub/a.b.png,1", "missing_file"),
        ("g.jpg/x,sub/a.b.png,1", "missing_file"),
        ("sub,sub/a.b.png,1", "unreadable_file"),
        (",sub/a.b.png,1", "missing_value"),
        ("g.jpg,sub/a.b.png,91", "bad_value"),
        ("g.jpg,sub/a.b.png,inf", "bad_value"),
        ("g.jpg,sub/a.b.png,-inf", "bad_value"),
    ],
)
def test_hostile_rows_are_rejected(raw, row, reason):
    source = table(raw, f"ground,aerial,lat\n{row}\n")
    with pytest.raises(RejectedSample) as rejected:
        source.sample("train", 0)
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ground,aerial,colour\nx,y,z\n", "'colour' that is not known: the columns are ground"),
        ("lat,lon\n2,1\n", "neither a column 'ground' nor a column 'aerial'"),
        ("aerial,label\nx,y\n", "'label' without 'ground'"),
        ("aerial,lat\nx,north\n", "train.csv line 2: lat is 'north', not a finite number"),
        ("aerial,aerial\nx,y\n", "twice"),
        ("aerial\nx,y,z\n", "train.csv line 2 has 3 cells, its header has 1"),
        ("", "is empty"),
    ],
)
def test_broken_tables_are_one_sentence(raw, text, message):
    with pytest.raises(InputError, match=message) as error:
        table(raw, text)
    assert "train.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_that_do_not_fit(raw):
    with pytest.raises(InputError, match="has no table"):
        FolderSource(raw)
    with pytest.raises(InputError, match="There is no folder"):
        FolderSource(raw / "nowhere")
    (raw / "train.parquet").write_bytes(b"noise")
    with pytest.raises(InputError, match=r"train\.parquet can't be read"):
        FolderSource(raw)
    (raw / "train.csv").write_text("aerial\n")
    with pytest.raises(InputError, match="would both be the split train"):
        FolderSource(raw)

import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from data_shards.format.sample import RejectedSample
from data_shards.sources.folder import FolderSource
from data_shards.sources.tables import find_tables, read_table

COLUMNS = {"ground": pa.string(), "lat": pa.float64(), "lon": pa.float64()}
NULL = st.sampled_from(["", "NA", "N/A", "n/a", "None", "NULL", "null", "NaN", "nan", "#N/A", " "])
NAMES = st.text("abcXYZ019_-./ü,;\t", min_size=1, max_size=9).filter(
    lambda name: name == name.strip() and name.lower() not in {"na", "n/a", "nan", "none", "null"}
)
NUMBERS = st.floats(-90, 90) | st.integers(-90, 90)
ROWS = st.lists(st.tuples(NAMES, NUMBERS | NULL, NUMBERS | NULL), min_size=1, max_size=6)


def expected(cell):
    return None if isinstance(cell, str) else float(cell)


@given(
    ROWS,
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\r\n", "\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.integers(0, 2),
    st.booleans(),
)
def test_csv_is_read_back_however_it_is_written(
    tmp_path_factory, rows, delimiter, end, encoding, quoting, blank, index
):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow([*[""] * index, "Ground", "LAT", " lon "])
    for number, row in enumerate(rows):
        buffer.write(f"  {end}" * blank)
        writer.writerow([*[number] * index, *row])
    path = tmp_path_factory.mktemp("table") / "train.csv"
    path.write_bytes(buffer.getvalue().encode(encoding))
    table = read_table(path, COLUMNS)
    assert table.data.column_names == ["ground", "lat", "lon"]
    assert [tuple(row.values()) for row in table.data.to_pylist()] == [
        (name, expected(lat), expected(lon)) for name, lat, lon in rows
    ]
    step = 1 + blank
    for number in range(len(rows)):
        assert table.where(number) == f"train.csv line {1 + (number + 1) * step}"


TEXT = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@given(ROWS, st.sampled_from(TEXT))
def test_parquet_is_read_back_whatever_its_types(tmp_path_factory, rows, text):
    names, lat, lon = zip(*rows, strict=True)
    written = pa.table(
        {
            "Ground": pa.array(names, pa.string()).cast(text),
            "lat": pa.array([expected(cell) for cell in lat], pa.float64()),
            "lon": pa.array([None if c == "" else str(c) for c in lon], pa.string()).cast(text),
            "Unnamed: 0": list(range(len(rows))),
            "__index_level_0__": list(range(len(rows))),
        }
    )
    path = tmp_path_factory.mktemp("table") / "train.parquet"
    pq.write_table(written, path)
    read = read_table(path, COLUMNS).data
    assert read.schema.types == [pa.string(), pa.float64(), pa.float64()]
    assert [tuple(row.values()) for row in read.to_pylist()] == [
        (name, expected(lat), expected(lon)) for name, lat, lon in rows
    ]


def test_a_named_index_of_pandas_is_ignored_and_a_column_is_kept(tmp_path):
    written = pa.table({"ground": ["a"], "id": [7]})
    described = b'{"index_columns": ["id", "ground", {"kind": "range"}], "columns": []}'
    pq.write_table(written.replace_schema_metadata({b"pandas": described}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", COLUMNS).data.to_pydict() == {"ground": ["a"]}
    pq.write_table(written, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet has a column 'id' that is not known"):
        read_table(tmp_path / "t.parquet", COLUMNS)


@pytest.mark.parametrize("described", [b"{", b"[]", b"{}", b'{"index_columns": null}'])
def test_what_is_not_said_as_pandas_says_it_is_no_index(tmp_path, described):
    written = pa.table({"ground": ["a"]}).replace_schema_metadata({b"pandas": described})
    pq.write_table(written, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", COLUMNS).data.to_pydict() == {"ground": ["a"]}


@pytest.mark.parametrize("values", [[1, 2], [1.5, 2.5], [None, None], ["1", "NA"]])
def test_numbers_may_have_any_numeric_type(tmp_path, values):
    pq.write_table(pa.table({"ground": ["a", "b"], "lat": values}), tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet", COLUMNS).data["lat"].to_pylist()
    assert read == [None if value in (None, "NA") else float(value) for value in values]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('ground;lat\na;"48,1"\n', r"t\.csv line 2: lat is '48,1', .*: write 48\.1"),
        ("ground,lat\na,1\n\nb,48°8'\n", r"t\.csv line 4: lat is \"48°8'\", not a finite number"),
        ("ground,lat\na,1\nb,1_0\n", r"t\.csv line 3: lat is '1_0'"),
        ("ground,lat\na,1\nb\n", r"t\.csv line 3 has 1 cells, its header has 2"),
        ("ground,lat\na,48,1\n", r"t\.csv line 2 has 3 cells, its header has 2"),
        ('ground,lat\na,1\n"b,2\nc,3\n', r"t\.csv line 3 is not CSV"),
        ('ground,lat\n"a,1\n', r"t\.csv line 2 is not CSV"),
        ("ground,Lat, lat\na,1,1\n", r"t\.csv has a column twice"),
        ("\n \n", r"t\.csv is empty"),
        (f"\nground,{'x' * 200_000}\na,1\n", r"t\.csv line 2 is not CSV"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=said) as error:
        read_table(tmp_path / "t.csv", COLUMNS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [[True], [[1.0]], [b"\xff"], pa.array([0], pa.timestamp("s"))])
def test_columns_of_other_types_are_named(tmp_path, values):
    pq.write_table(pa.table({"ground": ["a"], "lat": values}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet has .* in the column 'lat', not numbers"):
        read_table(tmp_path / "t.parquet", COLUMNS)


def test_a_bad_number_in_parquet_is_named_by_its_row(tmp_path):
    written = pa.table({"ground": ["a", "b"], "lat": ["1", "48,1"]})
    pq.write_table(written, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet row 2: lat is '48,1'"):
        read_table(tmp_path / "t.parquet", COLUMNS)


def test_hidden_files_are_no_tables_and_the_suffix_has_any_case(tmp_path):
    (tmp_path / "train.csv").write_text("ground\na\n")
    (tmp_path / "Val.CSV").write_text("ground\nb\n")
    for name in ("._train.csv", ".DS_Store", ".hidden.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\x05\x16\x07")
    assert find_tables(tmp_path) == {
        "Val": tmp_path / "Val.CSV",
        "train": tmp_path / "train.csv",
    }
    (tmp_path / "test.parquet").mkdir()
    with pytest.raises(InputError, match=r"test\.parquet can't be read \(Is a directory\)"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("lat", "90.5"), ("lon", "181"), ("heading", "361"), ("extent", "0"), ("extent", "inf")],
)
def test_a_row_out_of_range_is_rejected_by_its_line(tmp_path, column, value):
    (tmp_path / "train.csv").write_text(f"ground,{column}\n\nx.jpg,1\nx.jpg,{value}\n")
    with pytest.raises(RejectedSample, match=rf"train\.csv line 4: {column} is") as rejected:
        FolderSource(tmp_path).sample("train", 1)
    assert rejected.value.reason == "bad_value"


def test_empty_tables_have_no_rows(tmp_path):
    (tmp_path / "t.csv").write_text("ground,lat\r\n\r\n")
    assert read_table(tmp_path / "t.csv", COLUMNS).data.num_rows == 0

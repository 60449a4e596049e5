import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from data_shards.base.text import lines_of, number, read_rows, read_text

WORDS = st.text("abcÄ17._-/", min_size=1, max_size=8)


@given(
    st.lists(WORDS, min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_list_is_the_same_in_every_encoding(tmp_path_factory, words, end, encoding, blank, last):
    path = tmp_path_factory.mktemp("text") / "list"
    text = (end * (1 + blank)).join(f" {word}\t" for word in words) + end * last
    path.write_bytes(text.encode(encoding))
    lines = lines_of(read_text(path))
    assert [line.text for line in lines] == words
    assert [line.number for line in lines] == [1 + n * (1 + blank) for n in range(len(words))]


def test_what_is_no_text_is_named_with_its_line(tmp_path):
    path = tmp_path / "latin"
    path.write_bytes(b"a\nb\nM\xfcnchen\n")
    with pytest.raises(InputError, match=f"{path} line 3 is not UTF-8 text"):
        read_text(path)
    with pytest.raises(InputError, match=r"nowhere can't be read \(No such file .*\): is it there"):
        read_text(tmp_path / "nowhere", "is it there?")
    with pytest.raises(InputError, match="Is a directory"):
        read_text(tmp_path)


def test_rows_have_the_lines_of_an_editor(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbf\r\na ,"b, c",d\r\n\r\n,,\r\n"e", f\r\n')
    assert [tuple(row) for row in read_rows(path)] == [(2, ["a", "b, c", "d"]), (5, ["e", "f"])]
    path.write_bytes(b'a,b\n"c,d\ne,f\n')
    with pytest.raises(InputError, match=r"rows\.csv line 3 is not CSV"):
        read_rows(path)


@pytest.mark.parametrize(
    "null", ["", " ", "NA", "N/A", "n/a", "#N/A", "None", "NULL", "null", "NaN", "nan", "<NA>"]
)
def test_usual_nulls_are_missing_values(null):
    assert number(null) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_back(value):
    for text in (repr(value), f" {value:.17e} "):
        assert number(text) == float(text)


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1_0", "0x10", "48°8'", "1e999", "x", "1 2"])
def test_what_is_no_finite_number_is_none(cell):
    with pytest.raises(ValueError, match="not a finite number"):
        number(cell)


def test_a_decimal_comma_says_what_to_write():
    with pytest.raises(ValueError, match=r"'48,137', not a finite number: write 48\.137"):
        number("48,137")
    assert number("+48.5") == 48.5
    assert math.copysign(1, number("-0")) == -1

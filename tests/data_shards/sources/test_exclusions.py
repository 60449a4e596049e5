import hashlib
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError, run
from data_shards.cli import app
from data_shards.sources.cvusa import CvusaSource
from data_shards.sources.exclusions import read_exclusions
from tests.raw_data import write_cvusa

IDS = [f"{n}" for n in range(1, 40)]
PANORAMAS = [f"x-{n}_,41.{n},-87.{n},.jpg" for n in range(1, 40)]
SEPARATORS = st.sampled_from([",", ", ", "\t", ";", " ; ", " ", "\n", "\r\n", "\n\n", "\n# 3,4\n"])


def canonical(name):
    return name.removesuffix(".jpg").lstrip("0")


def written(names, separators, styles, encoding="utf-8"):
    """A list as somebody might write it."""
    folders = {"plain": "", "path": "data/2/", "windows": "C:\\data\\2\\", "quoted": "a b/"}
    entries = [
        f'"{folders[style]}{name}"' if style == "quoted" else f"{folders[style]}{name}"
        for name, style in zip(names, styles, strict=True)
    ]
    text = "".join(entry + end for entry, end in zip(entries, separators, strict=True))
    return text.encode(encoding)


@given(st.data())
def test_any_separators_quotes_and_folders_name_the_same(tmp_path_factory, data):
    vigor = data.draw(st.booleans())
    names = data.draw(st.lists(st.sampled_from(PANORAMAS if vigor else IDS), max_size=12))
    count = len(names)
    separators = data.draw(st.lists(SEPARATORS, min_size=count, max_size=count))
    style = st.sampled_from(["plain", "path", "windows", "quoted"])
    styles = data.draw(st.lists(style, min_size=count, max_size=count))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    path = tmp_path_factory.mktemp("list") / "list"
    path.write_bytes(written(names, separators, styles, encoding))
    known, spelling = (PANORAMAS, str) if vigor else (IDS, canonical)
    found = read_exclusions(path, known, spelling)
    assert found.names == set(names)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2\n99\n", r"1 of 3 entries .* match nothing in the data set: '99' \(line 2\)\."),
        ("40\n\n41 42,43;44", r"5 of 5 .*: '40' \(line 1\), '41' \(line 3\), '42' .* and 2 more"),
        ("id\n1\n", r"'id' \(line 1\)"),
        ("1.jpg,x/50.jpg", r"1 of 2 .*'x/50\.jpg'"),
    ],
)
def test_what_matches_nothing_is_named(tmp_path, text, said):
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=said):
        read_exclusions(tmp_path / "list", IDS, canonical)


def test_an_unknown_name_with_commas_is_one_entry(tmp_path):
    (tmp_path / "list").write_text(f"no,1,2,.jpg\n{PANORAMAS[0]},no,1.5,2,.jpg")
    with pytest.raises(InputError, match=r"'no,1,2,\.jpg' \(line 1\), 'no' \(line 2\)"):
        read_exclusions(tmp_path / "list", PANORAMAS, str)


def test_a_folder_of_one_entry_swallows_no_other(tmp_path):
    for text in ("1.jpg,a/2.jpg", '"1.jpg,a/2.jpg"', "'1.jpg;a\\2.jpg'"):
        (tmp_path / "list").write_text(text)
        assert read_exclusions(tmp_path / "list", IDS, canonical).names == {"1", "2"}


def test_no_list_and_an_empty_list_exclude_nothing(tmp_path):
    assert read_exclusions(None, IDS, str) == (frozenset(), None)
    (tmp_path / "list").write_text("\n# none\n")
    assert read_exclusions(tmp_path / "list", IDS, str).names == set()
    with pytest.raises(InputError, match="can't be read"):
        read_exclusions(tmp_path / "nowhere", IDS, str)


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(b"1\n2\n",)).start()
    found = read_exclusions(pipe, IDS, canonical)
    assert found == ({"1", "2"}, hashlib.sha256(b"1\n2\n").hexdigest())


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf1,2,3", b'"1"\r\n"2"\r\n"3"', b"x\\1.jpg 2 003.jpg"]
)
def test_a_build_leaves_out_what_was_meant(tmp_path, text):
    write_cvusa(tmp_path / "raw")
    (tmp_path / "list").write_bytes(text)
    source = CvusaSource(tmp_path / "raw", tmp_path / "list")
    assert source.splits["train"].rows == 1
    assert source.sample("train", 0).meta.source_id == "0000004"


def test_the_command_ends_before_it_writes(tmp_path, capsys):
    write_cvusa(tmp_path / "raw")
    (tmp_path / "list").write_text("1\nnot-there\n")
    out = tmp_path / "out"
    words = ["build", "cvusa", "--root", tmp_path / "raw", "--out", out, "--exclude"]
    with pytest.raises(SystemExit) as ended:
        run(app, [str(word) for word in (*words, tmp_path / "list")])
    assert ended.value.code == 2
    assert "'not-there' (line 2)" in capsys.readouterr().err
    assert not out.exists()

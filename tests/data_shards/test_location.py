"""Addresses and listings, against the file system and `urllib`'s own reading of URLs."""

import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from data_shards.base.store import exists, location, names, require_local, same_location, sizes

NAMES = st.text(
    st.one_of(st.sampled_from(" #?%&+;=@:~*[]{}'\"\\"), st.characters(exclude_categories=["C"])),
    min_size=1,
    max_size=12,
).filter(lambda name: "/" not in name and name not in (".", ".."))


@given(NAMES, NAMES)
def test_a_path_is_taken_as_it_is(first, second):
    for path in (f"/{first}/{second}", f"./{first}/{second}"):
        assert location(path) == Path(path)


@given(NAMES, NAMES)
def test_a_file_url_is_what_its_quoted_path_says(first, second):
    path = Path("/", first, second)
    for url in (path.as_uri(), f"FILE://localhost{quote(str(path))}", f"file:{quote(str(path))}"):
        assert location(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "file://data/shards",
        "file:data/shards",
        "file://",
        "file:///data#1",
        "file:///data?x",
        "file:///a\tb",
        "file:///%00",
        "s3://[abc",
        "s3:/bucket/x",
        "s3:///x",
        "s3://",
        " s3://bucket/x",
        "s3://bucket/x\n",
        "https://host/data#1",
        "x://bucket",
        "://bucket/x",
        "",
        "a\0b",
    ],
)
def test_what_is_no_address_is_refused_in_one_sentence(url):
    with pytest.raises(InputError) as caught:
        location(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/x", "file:///x", "gs:///x"])
def test_a_url_is_no_local_path(url):
    with pytest.raises(InputError, match=r"--root .* is a URL"):
        require_local(Path(url), "--root")
    require_local(Path("/data/s3:/x"), "--root")


def test_a_store_is_addressed_as_its_own_tools_address_it():
    for key in ("a#b", "a%20b", "a b", "ä"):
        assert location(f"S3://bucket/{key}/").path == f"bucket/{key}"


def test_one_folder_has_many_spellings(tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    spellings = [
        "a b",
        "./a b/",
        "link",
        "link/../a b",
        str(folder),
        folder.as_uri(),
        f"{folder}/../{folder.name}",
    ]
    for one in spellings:
        for other in spellings:
            assert same_location(location(one), location(other)), (one, other)
        assert not same_location(location(one), tmp_path)
        assert not same_location(location(one), location("s3://bucket/x"))
    assert same_location(Path("not/there"), Path("not/../not/there"))
    assert same_location(location("s3://bucket/x"), location("s3a://bucket/x/"))
    assert not same_location(location("s3://bucket/x"), location("s3://bucket/y"))


def test_a_listing_leaves_out_links_to_nothing_and_folders(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"abc")
    (tmp_path / "b.tar").symlink_to("nowhere")
    (tmp_path / "c.tar").symlink_to("c.tar")
    (tmp_path / "d.tar").symlink_to("a.tar/x")
    (tmp_path / "e.tar").symlink_to("a.tar")
    (tmp_path / "folder").mkdir()
    assert sizes(tmp_path) == {"a.tar": 3, "e.tar": 3}
    assert [exists(tmp_path / f"{name}.tar") for name in "abcde"] == [True, *[False] * 3, True]
    assert sizes(tmp_path / "nowhere") == {}


def test_a_folder_that_can_not_be_read_is_not_an_empty_one(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "loop", tmp_path / "file", tmp_path / ("x" * 300)):
        for listing in (sizes, names):
            with pytest.raises(InputError, match="can't be read"):
                listing(folder)
    with pytest.raises(InputError, match="can't be read"):
        exists(tmp_path / ("x" * 300))


def test_a_listing_that_races_renames_has_all_that_stays(tmp_path):
    kept = {f"train-{number:06d}.parquet" for number in range(40)}
    for name in kept:
        (tmp_path / name).touch()
    done = threading.Event()

    def write(writer: int) -> None:
        while not done.is_set():
            temporary = tmp_path / f"{writer}.tmp"
            temporary.touch()
            temporary.rename(tmp_path / f"{writer}.whole")
            (tmp_path / f"{writer}.whole").unlink()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(200):
            assert kept <= sizes(tmp_path).keys()
    finally:
        done.set()
        for writer in writers:
            writer.join()

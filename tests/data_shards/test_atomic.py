import pytest

from data_shards.atomic import atomic_file, remove_leftovers, write_atomic


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail():
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_not_there_before_the_block_ends(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_leftovers_of_killed_processes_go(tmp_path):
    (tmp_path / "train").mkdir()
    kept = tmp_path / "train" / "train-000000.tar"
    for path in (kept, tmp_path / "manifest.json.1.tmp", kept.with_name("x.tar.77.tmp")):
        path.touch()
    remove_leftovers(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]

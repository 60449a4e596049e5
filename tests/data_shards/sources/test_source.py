import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest

from data_shards.base.errors import InputError
from data_shards.build.dataset import build
from data_shards.format.sample import RejectedSample
from data_shards.sources.source import file_hash, read_inside

DATASETS = Path(__file__).resolve().parents[3] / "docs" / "datasets.md"


@pytest.mark.parametrize(
    ("relative", "reason"),
    [
        ("../secret", "outside_root"),
        ("a/../../secret", "outside_root"),
        ("/etc/passwd", "outside_root"),
        ("a\0b", "outside_root"),
        ("a/nothing", "missing_file"),
        ("a/file/below", "missing_file"),
        ("a", "unreadable_file"),
        ("x" * 5000, "unreadable_file"),
        ("x" * 5000 + "\\x", "unreadable_file"),
    ],
)
def test_only_files_below_the_root_are_read(tmp_path, relative, reason):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "file").write_bytes(b"bytes")
    assert read_inside(tmp_path / "root", "a/file") == b"bytes"
    with pytest.raises(RejectedSample) as rejected:
        read_inside(tmp_path / "root", relative)
    assert rejected.value.reason == reason
    assert str(tmp_path) not in str(rejected.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.jpg")
    with pytest.raises(RejectedSample, match=r"image\.jpg is not a file"):
        read_inside(tmp_path, "image.jpg")


def test_folders_may_stand_before_backslashes_and_lead_nowhere_else(tmp_path):
    (tmp_path / "secret").write_text("x")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"below")
    assert read_inside(root, "a\\file") == b"below"
    for relative in ("..\\secret", "a\\..\\..\\secret", "\\etc\\passwd"):
        with pytest.raises(RejectedSample, match="outside_root"):
            read_inside(root, relative)
    (root / "a\\file").write_bytes(b"its very name")
    assert read_inside(root, "a\\file") == b"its very name"


def test_a_list_that_is_not_there_has_no_hash(tmp_path):
    (tmp_path / "list").write_bytes(b"abc")
    assert file_hash(tmp_path / "list") == hashlib.sha256(b"abc").hexdigest()
    assert file_hash(tmp_path / "nowhere") is None
    assert file_hash(None) is None


def test_the_documented_example_is_a_source(tmp_path, make_jpeg, make_png):
    (code,) = re.findall(r"```python\n(.*?)```", DATASETS.read_text(encoding="utf-8"), re.DOTALL)
    module: dict = {}
    exec(code, module)
    root = tmp_path / "mytown"
    for folder in ("ground", "tiles"):
        (root / folder).mkdir(parents=True)
    (root / "list.txt").write_text("a 1.5 2.5\nb 3 4\n")
    (root / "ground" / "a.jpg").write_bytes(make_jpeg(8, 16))
    (root / "tiles" / "a.png").write_bytes(make_png(np.zeros((8, 8, 3), np.uint8)))
    manifest = build(module["MytownSource"](root), tmp_path / "out", workers=1)
    assert (manifest.name, manifest.splits["train"].samples) == ("mytown", 1)
    assert manifest.splits["train"].rejected == {"missing_file": 1}
    with pytest.raises(InputError, match=r"list\.txt can't be read"):
        module["MytownSource"](tmp_path)

import json
from pathlib import Path

import pytest

from data_shards.base.errors import InputError, UserError
from smdt.data.order import DataState
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.retention import Retention


def make(checkpoints: Path, step: int) -> Path:
    """A published checkpoint with two small files."""
    folder = checkpoint.folder_of(checkpoints, step)
    (folder / "two_tower").mkdir(parents=True)
    (folder / "two_tower" / "rank0.pt").write_bytes(bytes([step % 251]) * 100)
    (folder / checkpoint.WEIGHTS).write_bytes(b"weights")
    progress = Progress(step, 8 * step, 1, 0, DataState("hash", 0, 0, 8 * step))
    (folder / checkpoint.PROGRESS).write_text(json.dumps(progress.to_json()))
    checkpoint._seal(folder)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda folder: flip(folder / "two_tower" / "rank0.pt"), "rank0.pt does not match"),
        (lambda folder: (folder / checkpoint.WEIGHTS).unlink(), "weights.safetensors is missing"),
        (lambda folder: (folder / checkpoint.FILES).unlink(), "files.json is missing"),
        (lambda folder: (folder / checkpoint.FILES).write_text("{"), "files.json"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, harm, word, caplog):
    good, bad = make(tmp_path, 5), make(tmp_path, 10)
    harm(bad)
    assert checkpoint.integrity_error(good) == ""
    assert word in checkpoint.integrity_error(bad)
    assert checkpoint.latest_valid(tmp_path) == good
    assert "step-00000010 is damaged" in caplog.text


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_a_start(tmp_path):
    assert checkpoint.latest_valid(tmp_path) is None
    flip(make(tmp_path, 5) / checkpoint.WEIGHTS)
    with pytest.raises(UserError, match="none of the 1 checkpoints is intact"):
        checkpoint.latest_valid(tmp_path)


def test_an_unpublished_checkpoint_does_not_count(tmp_path):
    make(tmp_path, 5)
    checkpoint.folder_of(tmp_path, 10).with_name("step-00000010.tmp").mkdir()
    assert [folder.name for folder in checkpoint.published(tmp_path)] == ["step-00000005"]


def test_a_copy_of_a_checkpoint_is_none_and_is_kept(tmp_path):
    for step in (5, 99_999_999, 100_000_000):
        make(tmp_path, step)
    (tmp_path / "step-00000005.bak").mkdir()
    newest_first = [checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path)]
    assert newest_first == [100_000_000, 99_999_999, 5]
    Retention(tmp_path, keep_last=1).apply(100_000_000, best=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000005.bak",
        "step-100000000",
    ]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (5, 10, 15, 20, 25):
        make(tmp_path, step)
    (tmp_path / "step-00000030.tmp").mkdir()
    (tmp_path / f"latest.{'0' * 16}.tmp").touch()
    Retention(tmp_path, keep_last=2).apply(25, best=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000010",
        "step-00000020",
        "step-00000025",
    ]


@pytest.mark.parametrize("best", [None, (0.25, 20)])
def test_progress_survives_json(best):
    progress = Progress(40, 1280, 2, 3, DataState("hash", 3, 2, 64, "table"), best)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_what_another_version_wrote_is_said_in_a_sentence(tmp_path):
    (tmp_path / "progress.json").write_text('{"step": 5, "best": null}')
    with pytest.raises(InputError, match=r"progress.json does not say 'samples': another version"):
        checkpoint.load_progress(tmp_path)


def test_a_folder_of_checkpoints_that_can_not_be_read_is_not_an_empty_one(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop can't be read"):
        checkpoint.latest_valid(tmp_path / "loop")
    assert checkpoint.latest_valid(tmp_path / "nowhere") is None

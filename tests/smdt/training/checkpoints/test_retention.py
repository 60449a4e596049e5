"""Whatever happens to a run's checkpoints, the newest whole one is never lost."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.base.errors import UserError
from smdt.data.order import DataState
from smdt.training.checkpoints import checkpoint, retention
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.resume import find_resume_point
from smdt.training.checkpoints.retention import Retention, steps_to_keep
from smdt.training.checkpoints.run_folder import RunFolder


def write(checkpoints: Path, step: int) -> None:
    """What all ranks of a run write, as small files."""
    folder = checkpoints / f"{checkpoint.folder_of(checkpoints, step).name}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "two_tower").mkdir(parents=True)
    (folder / "two_tower" / "rank0.pt").write_bytes(b"%8d" % step * 10)
    progress = Progress(step, 8 * step, 1, 0, DataState("0" * 64, 0, 0, 8 * step))
    (folder / checkpoint.PROGRESS).write_text(json.dumps(progress.to_json()))


def save(checkpoints: Path, step: int, kept: Retention, best: int | None = None) -> list[Progress]:
    write(checkpoints, step)
    checkpoint.publish_step(checkpoints, step)
    return kept.apply(step, best)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARMS = {
    "flipped": lambda folder: flip(folder / "two_tower" / "rank0.pt"),
    "cut short": lambda folder: (folder / "two_tower" / "rank0.pt").write_bytes(b""),
    "no progress": lambda folder: (folder / checkpoint.PROGRESS).unlink(),
    "other progress": lambda folder: (folder / checkpoint.PROGRESS).write_text("{}"),
    "no list": lambda folder: (folder / checkpoint.FILES).unlink(),
    "list of another kind": lambda folder: (folder / checkpoint.FILES).write_text("[1]"),
    "list of other bytes": lambda folder: (folder / checkpoint.FILES).write_bytes(b"\xff\xfe"),
    "empty list": lambda folder: (folder / checkpoint.FILES).write_text("{}"),
}


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir() if path.is_dir())


def latest(checkpoints: Path) -> Path:
    return checkpoints / (checkpoints / checkpoint.LATEST).read_text().strip()


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newer_checkpoint_counts_for_nothing_and_stays(run, harm, capsys):
    first = Retention(run.checkpoints, keep_last=2)
    for step in (10, 20, 30, 40):
        save(run.checkpoints, step, first)
    for step in (30, 40):
        HARMS[harm](checkpoint.folder_of(run.checkpoints, step))
    save(run.checkpoints, 20, Retention(run.checkpoints, 4))  # as if 20 had been the best
    origin = find_resume_point(run, "auto", 0, 1)
    assert origin.checkpoint == checkpoint.folder_of(run.checkpoints, 20)
    assert latest(run.checkpoints) == origin.checkpoint
    resumed = Retention(run.checkpoints, keep_last=1)
    save(run.checkpoints, 25, resumed)
    assert names(run.checkpoints)[0] == "step-00000025"
    assert latest(run.checkpoints).name == "step-00000025"
    assert {name.partition(".")[0] for name in names(run.checkpoints)[1:]} == {
        "step-00000030",
        "step-00000040",
    }
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "is set aside as" in line]) == 2


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_older_checkpoint_takes_no_place_of_a_good_one(run, harm):
    first = Retention(run.checkpoints, keep_last=3)
    for step in (10, 20, 30):
        save(run.checkpoints, step, first)
    HARMS[harm](checkpoint.folder_of(run.checkpoints, 20))
    kept = save(run.checkpoints, 40, Retention(run.checkpoints, keep_last=3))
    assert sorted(progress.step for progress in kept) == [10, 30]
    assert names(run.checkpoints) == [
        "step-00000010",
        "step-00000020.damaged",
        "step-00000030",
        "step-00000040",
    ]


def test_hashes_are_read_once_and_of_what_another_process_wrote(run):
    save(run.checkpoints, 10, Retention(run.checkpoints, 3))
    kept = Retention(run.checkpoints, 3)
    with patch.object(checkpoint, "_fingerprint", wraps=checkpoint._fingerprint) as read:
        for step in (20, 30, 40):
            save(run.checkpoints, step, kept)
    states = [call.args[0] for call in read.call_args_list if call.args[0].name == "rank0.pt"]
    assert sorted(path.parent.parent.name for path in states) == [
        "step-00000010",
        *(f"step-{step:08d}.tmp" for step in (20, 30, 40)),  # to publish it
    ]


def test_set_aside_twice_under_two_names(run):
    for _ in range(3):
        write(run.checkpoints, 10)
        checkpoint.publish_step(run.checkpoints, 10)
        folder = checkpoint.folder_of(run.checkpoints, 10)
        retention.set_aside(folder, "damaged", "cut short")
    found = ["step-00000010.damaged", "step-00000010.damaged-2", "step-00000010.damaged-3"]
    assert names(run.checkpoints) == found
    assert checkpoint.published(run.checkpoints) == []


def test_the_one_that_is_named_on_the_command_line_leaves_no_newer_one(run, tmp_path):
    other = tmp_path / "other"
    save(other, 15, Retention(other, 1))
    for step in (10, 20):
        save(run.checkpoints, step, Retention(run.checkpoints, 2))
    flip(checkpoint.folder_of(run.checkpoints, 20) / checkpoint.PROGRESS)
    find_resume_point(run, str(checkpoint.folder_of(other, 15)), 0, 1)
    assert names(run.checkpoints) == ["step-00000010", "step-00000020.damaged"]
    assert latest(run.checkpoints).name == "step-00000010"


def test_a_kill_while_one_is_deleted_leaves_nothing_that_counts(run):
    kept = Retention(run.checkpoints, keep_last=1)
    save(run.checkpoints, 10, kept)
    killed = patch.object(retention.shutil, "rmtree", side_effect=[None, KeyboardInterrupt])
    with killed, pytest.raises(KeyboardInterrupt):
        retention.delete(checkpoint.folder_of(run.checkpoints, 10))
    assert checkpoint.published(run.checkpoints) == []


@given(
    whole=st.sets(st.integers(0, 30)),
    current=st.integers(0, 30),
    keep_last=st.integers(1, 4),
    best=st.none() | st.integers(0, 30),
)
def test_the_pure_rule(whole, current, keep_last, best):
    kept = steps_to_keep(whole, current, keep_last, best)
    assert current in kept
    assert kept <= {current} | {step for step in whole if step <= current}
    older = [step for step in sorted(whole - {current}, reverse=True) if step < current]
    assert set(older[: keep_last - 1]) <= kept
    assert (best in kept) or best not in whole or best > current
    assert len(kept) <= keep_last + 1


class Killed(BaseException):
    """The process is gone."""


def killing(after: int):
    """Patches of what changes the disk: after some changes the process is gone."""
    left = [after]

    def counted(do):
        def act(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return do(*args, **kwargs)

        return act

    def half_rmtree(path, ignore_errors=False):
        with suppress(OSError):
            for file in sorted(Path(path).rglob("*")):
                if file.is_file():
                    counted(file.unlink)()
        rmtree(path, ignore_errors=ignore_errors)

    rmtree = shutil.rmtree
    half_rmtree = counted(half_rmtree)
    return (
        patch.object(shutil, "rmtree", half_rmtree),
        patch.object(Path, "rename", counted(Path.rename)),
        patch.object(checkpoint, "write_atomic", counted(checkpoint.write_atomic)),
    )


ACTIONS = st.one_of(
    st.tuples(st.just("save"), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("killed"), st.integers(1, 3), st.integers(0, 12)),
    st.tuples(st.just("damage"), st.integers(0, 3), st.sampled_from(sorted(HARMS))),
    st.tuples(st.just("resume"), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=25), keep_last=st.integers(1, 3))
def test_latest_names_a_whole_checkpoint_and_the_newest_good_one_survives(actions, keep_last):
    with TemporaryDirectory() as root:
        run = RunFolder(root)
        run.create()
        at, best, kept = 0, None, Retention(run.checkpoints, keep_last)

        def good() -> list[int]:
            found = checkpoint.published(run.checkpoints)
            return [
                checkpoint.step_of(each) for each in found if not checkpoint.integrity_error(each)
            ]

        def resume() -> tuple[int, Retention]:
            """The next process; what it finds whole first is where it goes on."""
            before = good()
            try:
                origin = find_resume_point(run, "auto", 0, 1).checkpoint
            except UserError:
                assert not before  # an operator restores one; here the run begins anew
                shutil.rmtree(run.checkpoints)
                run.create()
                return 0, Retention(run.checkpoints, keep_last)
            step = 0 if origin is None else checkpoint.step_of(origin)
            assert step == max(before, default=0)
            if origin is not None:
                assert latest(run.checkpoints) == origin
            return step, Retention(run.checkpoints, keep_last)

        for action, number, detail in actions:
            newest = max(good(), default=0)
            if action == "save":
                at += number
                best = at if detail else best
                save(run.checkpoints, at, kept, best)
                assert latest(run.checkpoints) == checkpoint.folder_of(run.checkpoints, at)
                assert checkpoint.integrity_error(latest(run.checkpoints)) == ""
                assert max(good()) == at
            elif action == "killed":
                write(run.checkpoints, at + number)
                one, two, three = killing(detail)
                with one, two, three, suppress(Killed):
                    checkpoint.publish_step(run.checkpoints, at + number)
                    kept.apply(at + number, best)
                assert max(good(), default=0) >= newest
                at, kept = resume()
            elif action == "resume":
                at, kept = resume()
            else:
                found = checkpoint.published(run.checkpoints)[number : number + 1]
                for folder in found:
                    with suppress(OSError, IndexError):  # it may lack the file by now
                        HARMS[detail](folder)
                at, kept = resume()


def test_on_a_full_disk_a_run_goes_on_from_its_newest_checkpoint_and_from_no_other(run):
    for step in (2, 4):
        write(run.checkpoints, step)
        checkpoint.publish_step(run.checkpoints, step)
    full = OSError(28, "No space left on device")
    with patch("smdt.training.checkpoints.checkpoint.write_atomic", side_effect=full):
        newest, older, *_ = checkpoint.published(run.checkpoints)
        retention.prepare_resume(run.checkpoints, newest, 4)
        with pytest.raises(UserError, match="latest can't be written: No space left"):
            retention.prepare_resume(run.checkpoints, older, 2)

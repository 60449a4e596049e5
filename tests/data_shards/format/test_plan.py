import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError, ShardError
from data_shards.build.dataset import plan_build
from data_shards.format.plan import BuildOptions, BuildPlan, PlannedSplit


@given(st.integers(1, 500), st.integers(1, 60), st.none() | st.integers(0, 9))
def test_shards_hold_every_row_once(rows, per_shard, seed):
    options = BuildOptions(samples_per_shard=per_shard, seed=seed)
    splits = {"train": PlannedSplit(kind="pairs", rows=rows)}
    plan = BuildPlan(name="x", source={}, options=options, encoder=None, splits=splits)
    tasks = plan.tasks("train")
    assert [task.shard for task in tasks] == list(range(len(tasks)))
    assert all(len(task.rows) == per_shard for task in tasks[:-1])
    dealt = [row for task in tasks for row in task.rows]
    assert sorted(dealt) == list(range(rows))
    assert tasks == plan.tasks("train")
    if seed is None:
        assert dealt == sorted(dealt)


def test_a_folder_belongs_to_one_build(tmp_path, memory_source):
    plan = plan_build(memory_source(), BuildOptions(quality=90))
    plan.claim(tmp_path / "out")
    plan.claim(tmp_path / "out")
    assert BuildPlan.load(tmp_path / "out") == plan
    for other, message in (
        (plan_build(memory_source(), BuildOptions(quality=80)), "options.quality 90, not 80"),
        (plan_build(memory_source(name="b"), BuildOptions()), "name memory, not b"),
        (plan_build(memory_source(rows={"train": 9}), BuildOptions()), "train 10, not 9"),
    ):
        with pytest.raises(InputError, match=message):
            other.claim(tmp_path / "out")


@pytest.mark.parametrize("split", ["a.b", "../up", "a/b", "", "a-b"])
def test_split_names_fit_into_keys(memory_source, split):
    with pytest.raises(InputError, match="split name"):
        plan_build(memory_source(rows={split: 1}), BuildOptions())


def test_an_empty_split_is_refused(memory_source):
    with pytest.raises(InputError, match="has no rows"):
        plan_build(memory_source(rows={"train": 0}), BuildOptions())


def test_unwritable_and_damaged_folders(tmp_path, memory_source):
    plan = plan_build(memory_source(), BuildOptions())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        plan.claim(tmp_path / "file")
    with pytest.raises(InputError, match="holds no build"):
        BuildPlan.load(tmp_path)
    (tmp_path / "build.json").write_text("{")
    with pytest.raises(ShardError, match="is damaged"):
        BuildPlan.load(tmp_path)


@pytest.mark.parametrize(
    "left", ["train/train-000000.tar", "val/val-000001.parquet", "manifest.json"]
)
def test_shards_without_a_plan_are_not_taken_for_this_build(tmp_path, memory_source, left):
    plan = plan_build(memory_source(), BuildOptions())
    plan.claim(tmp_path)
    (tmp_path / left).touch()
    plan.claim(tmp_path)  # goes on
    (tmp_path / "build.json").unlink()
    with pytest.raises(InputError, match=rf"has {left} and no build\.json"):
        plan.claim(tmp_path)
    assert not (tmp_path / "build.json").exists()


def test_a_folder_with_other_files_can_be_begun(tmp_path, memory_source):
    (tmp_path / "train").mkdir()
    for name in ("notes.txt", "train/notes.tar", "train/other-000000.tar"):
        (tmp_path / name).touch()
    plan_build(memory_source(), BuildOptions()).claim(tmp_path)

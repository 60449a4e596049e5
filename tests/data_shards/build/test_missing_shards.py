import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import ShardError
from data_shards.build.dataset import build
from data_shards.build.finalize import finalize
from data_shards.format.plan import LISTED_RUNS, BuildOptions, ranges


@given(st.sets(st.integers(0, 40)).map(sorted))
def test_ranges_name_every_number(numbers):
    text = ranges(numbers)
    named = []
    for run in text.replace(", ...", "").split(", ") if text else []:
        first, _, last = run.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == numbers[: len(named)]
    assert (named == numbers) == ("..." not in text)
    assert len(text.split(", ")) <= LISTED_RUNS + 1


def test_what_is_missing_is_named_for_every_split(memory_source, tmp_path):
    out = tmp_path / "out"
    build(memory_source(), out, BuildOptions(samples_per_shard=2), workers=1)
    for name in (
        "train/train-000001",
        "train/train-000002",
        "train/train-000004",
        "val/val-000001",
    ):
        (out / f"{name}.parquet").unlink()
    missing = r"3 of 5 shards of train \(1-2, 4\) and 1 of 2 shards of val \(1\)"
    with pytest.raises(ShardError, match=missing):
        finalize(out)

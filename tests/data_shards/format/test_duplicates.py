import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.build.dataset import build
from data_shards.build.finalize import finalize
from data_shards.format.duplicates import DuplicateCount, count, find_groups
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, Sample

SPLITS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), min_size=1, max_size=3
)


def words(splits):
    return [np.array(split, dtype=np.uint64).reshape(-1, 2) for split in splits]


def occurrences(splits):
    """Places by digest, in the order of first occurrence; those that occur more than once."""
    places = defaultdict(list)
    for split, digests in enumerate(splits):
        for row, digest in enumerate(digests):
            if digest != (0, 0):
                places[digest].append((split, row))
    return [group for group in places.values() if len(group) > 1]


@given(SPLITS)
def test_groups_are_those_that_a_dictionary_finds(splits):
    groups = find_groups(words(splits))
    found = list(
        zip(groups.group.tolist(), groups.split.tolist(), groups.row.tolist(), strict=True)
    )
    expected = [
        (number, *place) for number, group in enumerate(occurrences(splits)) for place in group
    ]
    assert found == expected


@given(SPLITS)
def test_counts_are_those_of_the_groups(splits):
    expected = []
    for number in range(len(splits)):
        inside = [[split for split, _ in group] for group in occurrences(splits)]
        repeated = sum(max(0, group.count(number) - 1) for group in inside)
        shared = sum(group.count(number) for group in inside if len(set(group)) > 1)
        expected.append(DuplicateCount(repeated=repeated, shared=shared))
    assert count(find_groups(words(splits)), len(splits)) == expected


@pytest.fixture
def leaking(memory_source, make_jpeg, make_png):
    """Six training pairs over three tiles; the first panorama is a validation panorama too."""
    source = memory_source(rows={"train": 6, "val": 2})

    def sample(split, row):
        leak = (split, row) in {("train", 0), ("val", 1)}
        ground = 999 if leak else row + 100 * len(split)
        aerial = row % 3 if split == "train" else 50 + row
        parts = {"ground.jpg": make_jpeg(32, 96, ground), "aerial.jpg": make_jpeg(48, 48, aerial)}
        return Sample(Meta(f"{split}.{row}"), parts)

    source.sample = sample
    return source


def test_a_build_counts_and_lists_its_duplicates(leaking, tmp_path):
    options = BuildOptions(samples_per_shard=2, seed=1)
    splits = build(leaking, tmp_path / "out", options, workers=1).splits
    none = DuplicateCount(repeated=0, shared=0)
    leak = DuplicateCount(repeated=0, shared=1)
    tiles = DuplicateCount(repeated=3, shared=0)
    assert splits["train"].duplicates == {"ground": leak, "aerial": tiles}
    assert splits["val"].duplicates == {"ground": leak, "aerial": none}
    listed = (tmp_path / "out" / "duplicates.jsonl").read_bytes()
    groups = [json.loads(line) for line in listed.splitlines()]
    assert groups[0] == {
        "view": "ground",
        "samples": [
            {"split": "train", "key": "train-000000000", "source_id": "train.0"},
            {"split": "val", "key": "val-000000001", "source_id": "val.1"},
        ],
    }
    tiles = [{s["source_id"] for s in g["samples"]} for g in groups if g["view"] == "aerial"]
    expected = [{f"train.{n}", f"train.{n + 3}"} for n in range(3)]
    assert sorted(map(sorted, tiles)) == sorted(map(sorted, expected))
    finalize(tmp_path / "out")
    assert (tmp_path / "out" / "duplicates.jsonl").read_bytes() == listed


@pytest.mark.parametrize("size", [None, 24])
def test_the_same_pixels_in_other_files_are_duplicates(
    memory_source, make_jpeg, make_png, tmp_path, size
):
    from data_shards.format.images import decode_photo

    jpeg = make_jpeg(48, 48)
    files = {0: {"aerial.jpg": jpeg}, 1: {"aerial.png": make_png(decode_photo("p", jpeg))}}
    source = memory_source(rows={"tiles": 2})
    source.sample = lambda _split, row: Sample(Meta(f"{row}"), files[row])
    manifest = build(source, tmp_path / "out", BuildOptions(aerial_size=size), workers=1)
    assert manifest.splits["tiles"].duplicates == {"aerial": DuplicateCount(repeated=1, shared=0)}

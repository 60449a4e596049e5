"""Batches of an evaluation: each sample once over the ranks, damage left out and counted."""

import json

import numpy as np
import pytest

from data_shards.base.errors import DataError, DataInputError
from smdt.data.split import Split


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_reads_each_sample_once(built, evaluation, pixels, world_size):
    seen, batches = [], []
    for rank in range(world_size):
        loader = evaluation(built, rank=rank, world_size=world_size)
        made = list(loader)
        batches.append(len(made))
        for batch in made:
            seen += batch.sample_ids.tolist()
            for slot, sample_id in enumerate(batch.sample_ids):
                expected = pixels("val", sample_id)["ground"]
                assert np.array_equal(batch.images["ground"][slot].numpy(), expected)
        assert loader.missing == []
    assert seen == list(range(23))
    assert max(batches) == loader.longest


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_of_some_samples_reads_those_in_their_order(built, evaluation, world_size):
    chosen = np.array([20, 3, 4, 0, 11, 22, 7])
    loaders = [
        evaluation(built, rank=rank, world_size=world_size, sample_ids=chosen, batch=2)
        for rank in range(world_size)
    ]
    seen = [batch.sample_ids.tolist() for loader in loaders for batch in loader]
    assert [i for batch in seen for i in batch] == chosen.tolist()
    assert {loader.longest for loader in loaders} == {4 if world_size == 1 else 2}


def test_evaluation_of_a_gallery(built, evaluation):
    (batch,) = evaluation(built, split="gallery", views=("aerial",), batch=8)
    assert batch.sample_ids.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataInputError, match=r"'gallery' \(aerial\).*no ground image"):
        evaluation(built, split="gallery")


def test_evaluation_leaves_damaged_samples_out(shards, evaluation, flip_byte, data_threads):
    split = Split.open(shards, "val")
    for sample_id in (5, 8, 9, 10, 11):
        flip_byte(split, sample_id, "aerial")
    loader = evaluation(shards, max_missing=5)
    for _ in range(2):  # a second pass starts its list anew
        seen = [i for batch in loader for i in batch.sample_ids.tolist()]
        assert seen == [i for i in range(23) if i not in (5, 8, 9, 10, 11)]
        assert [sample["source_id"] for sample in loader.missing] == [
            f"val.{i}" for i in (5, 8, 9, 10, 11)
        ]
        assert loader.missing[0]["reason"] == "checksum"
        json.dumps(loader.missing)
    with pytest.raises(DataError, match="max_missing=0: val-000000005"):
        list(evaluation(shards))
    assert data_threads() == []

"""The capacity model: what it must say whatever the figures, and that its parts can be measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import (
    Link,
    Parts,
    exchanged_bytes,
    measure_parts,
    pairs_per_second,
    step_seconds,
)
from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource

PARTS = Parts(
    pairs=10,
    loader_pairs_per_second=100.0,
    compute_seconds=0.5,
    parameters=1000,
    descriptor_bytes=80,
    calls=4.0,
)
LINK = Link(call_seconds=0.01, bytes_per_second=1e5)
ranks = st.integers(1, 512)
zero = st.sampled_from([0, 1, 2, 3])


def test_a_step_of_two_ranks_by_hand():
    assert exchanged_bytes(PARTS, 2, 2) == 2 * 1000 * 2 / 2 + 2 * 80
    assert exchanged_bytes(PARTS, 3, 2) == 3 * 1000 * 2 / 2 + 2 * 80
    found = step_seconds(PARTS, LINK, 2, 2)
    assert found["exchange"] == pytest.approx(4 * 0.01 + 2160 / 1e5)
    assert found["step"] == pytest.approx(0.5 + 4 * 0.01 + 2160 / 1e5)
    assert pairs_per_second(PARTS, LINK, 2, 2) == pytest.approx(20 / found["step"])


@given(zero=zero)
def test_one_rank_exchanges_nothing(zero):
    assert step_seconds(PARTS, LINK, zero, 1)["exchange"] == 0
    assert pairs_per_second(PARTS, LINK, zero, 1) == 10 / 0.5


@given(zero=zero, few=ranks, more=ranks)
def test_more_ranks_are_slower_each(zero, few, more):
    few, more = sorted((few, more))
    slow, fast = (pairs_per_second(PARTS, LINK, zero, count) / count for count in (more, few))
    assert slow <= fast * (1 + 1e-12)


@given(zero=zero, count=ranks, rate=st.floats(0.1, 20.0))
def test_no_rank_is_faster_than_its_loader(zero, count, rate):
    parts = Parts(10, rate, 0.5, 1000, 80, 4.0)
    assert pairs_per_second(parts, LINK, zero, count) <= count * rate * (1 + 1e-12)


@pytest.mark.full
def test_the_parts_of_a_rank_are_measured(tmp_path):
    batch = 8
    build(WorldSource(0, 4 * batch, 8, "easy", (64, 256), 192), tmp_path / "s", BuildOptions())
    parts = measure_parts(tmp_path / "s", batch, zero=2, processes=1)
    assert parts.pairs == batch
    assert parts.descriptor_bytes > 0
    assert parts.loader_pairs_per_second > 0
    assert parts.compute_seconds > 0
    assert parts.calls > 0

import os

import pytest

from smdt.training.ranks.lease import (
    ATTEMPT_VARIABLE,
    LEASE_TIMEOUT_SECONDS,
    LEASE_VARIABLE,
    LeaseMonitor,
    LeaseRecord,
    read,
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def lease(tmp_path):
    file = tmp_path / "lease"
    LeaseRecord("0002", "here", 17).write(file)
    return file


@pytest.fixture
def clock():
    return Clock()


def touch(file):
    stamp = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(stamp, stamp))


def test_a_lease_says_who_holds_it(lease):
    assert read(lease)[0] == LeaseRecord("0002", "here", 17)


def test_a_rank_stays_while_the_lease_is_touched(lease, clock):
    watch = LeaseMonitor(lease, "0002", clock)
    for _ in range(5):
        touch(lease)
        assert not watch.ended()
        clock.now += LEASE_TIMEOUT_SECONDS - 1


def test_a_rank_leaves_when_nobody_touches_the_lease(lease, clock):
    watch = LeaseMonitor(lease, "0002", clock)
    assert not watch.ended()
    clock.now += LEASE_TIMEOUT_SECONDS + 1
    assert watch.ended()


def test_a_rank_that_slept_itself_sees_the_touch_first(lease, clock):
    watch = LeaseMonitor(lease, "0002", clock)
    assert not watch.ended()
    clock.now += 10 * LEASE_TIMEOUT_SECONDS
    touch(lease)
    assert not watch.ended()


def test_a_rank_leaves_at_once_when_another_attempt_has_begun(lease, clock):
    watch = LeaseMonitor(lease, "0002", clock)
    assert not watch.superseded()
    LeaseRecord("0003", "here", 17).write(lease)
    assert watch.superseded()
    assert watch.ended()


def test_storage_that_is_away_counts_as_silence(lease, clock):
    watch = LeaseMonitor(lease, "0002", clock)
    assert not watch.ended()
    lease.rename(lease.with_name("elsewhere"))
    assert not watch.ended()
    assert not watch.superseded()
    clock.now += LEASE_TIMEOUT_SECONDS + 1
    assert watch.ended()


def test_only_ranks_of_a_supervised_run_have_one(lease):
    assert LeaseMonitor.of({ATTEMPT_VARIABLE: "local-7"}) is None
    assert LeaseMonitor.of({LEASE_VARIABLE: str(lease), ATTEMPT_VARIABLE: "0002"}) is not None

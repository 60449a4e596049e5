import os
import time
from threading import Event

import pytest

from data_shards.base.errors import UserError
from smdt.training.ranks import lease_holder
from smdt.training.ranks.lease import LeaseMonitor, LeaseRecord, read
from smdt.training.ranks.lease_holder import HEARTBEAT_SECONDS, LeaseHolder, active_holder


def wait_for(condition):
    end = time.monotonic() + 20 * HEARTBEAT_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_while_it_is_open_the_lease_is_touched_and_ranks_of_its_attempt_may_run(tmp_path):
    file = tmp_path / "lease"
    with LeaseHolder(file) as holder:
        holder.begin("1-abc")
        watch = LeaseMonitor(file, "1-abc")
        assert not watch.ended()
        touched_ns = read(file)[1]
        wait_for(lambda: read(file)[1] > touched_ns)
        assert active_holder(file).pid == os.getpid()
        assert not LeaseMonitor(file, "1-abc").ended()
        holder.end()
        assert LeaseMonitor(file, "1-abc").ended()
        assert active_holder(file) is not None
    assert active_holder(file) is None


def test_there_is_one_launcher_at_a_time(tmp_path):
    file = tmp_path / "lease"
    with (
        LeaseHolder(file),
        pytest.raises(UserError, match="has a launcher, process"),
        LeaseHolder(file),
    ):
        pass


def test_the_lease_of_a_dead_launcher_is_taken_over(tmp_path):
    file = tmp_path / "lease"
    LeaseRecord("5-dead", "elsewhere", 17).write(file)
    with LeaseHolder(file) as holder:
        assert LeaseMonitor(file, "5-dead").ended()
        assert not holder.lost


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"attempt": "a"}'])
def test_a_damaged_lease_is_nobodys(tmp_path, content):
    file = tmp_path / "lease"
    file.write_bytes(content)
    assert active_holder(file) is None
    with LeaseHolder(file):
        assert active_holder(file).pid == os.getpid()


def test_a_launcher_sees_that_another_one_took_over(tmp_path):
    file = tmp_path / "lease"
    with LeaseHolder(file) as holder:
        LeaseRecord("", "elsewhere", 17).write(file)
        wait_for(lambda: holder.lost)
    assert read(file)[0].host == "elsewhere"


def test_a_launcher_that_slept_takes_nothing_back(tmp_path):
    file = tmp_path / "lease"
    with LeaseHolder(file) as holder:
        holder.begin("1-ours")
        LeaseRecord("2-theirs", "elsewhere", 17).write(file)
        holder.end()
        assert holder.lost
        with pytest.raises(UserError, match="Another launcher has taken over"):
            holder.begin("3-ours")
    assert read(file)[0] == LeaseRecord("2-theirs", "elsewhere", 17)


def test_of_two_at_the_same_moment_one_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "lease"
    ours = LeaseHolder(file)
    # The other one saw no holder either, and writes last.
    monkeypatch.setattr(
        lease_holder.time, "sleep", lambda _: LeaseRecord("", "elsewhere", 17).write(file)
    )
    with pytest.raises(UserError, match="process 17 on elsewhere"), ours:
        pass
    assert read(file)[0].host == "elsewhere"


def test_a_holder_is_told_that_it_has_lost_the_run(tmp_path):
    lost = Event()
    file = tmp_path / "lease"
    with LeaseHolder(file, lost.set):
        LeaseRecord("", "elsewhere", 17).write(file)
        assert lost.wait(20 * HEARTBEAT_SECONDS)

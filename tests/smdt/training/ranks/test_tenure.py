import os
import time
from threading import Event

import pytest

from data_shards.base.errors import UserError
from smdt.training.ranks import tenure
from smdt.training.ranks.lease import Holder, LeaseWatch, read
from smdt.training.ranks.tenure import BEAT_SECONDS, Tenure, living_holder


def wait_for(condition):
    end = time.monotonic() + 20 * BEAT_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_while_it_is_open_the_lease_is_touched_and_ranks_of_its_attempt_may_run(tmp_path):
    file = tmp_path / "lease"
    with Tenure(file) as tenure:
        tenure.begin("1-abc")
        watch = LeaseWatch(file, "1-abc")
        assert not watch.ended()
        touched_ns = read(file)[1]
        wait_for(lambda: read(file)[1] > touched_ns)
        assert living_holder(file).pid == os.getpid()
        assert not LeaseWatch(file, "1-abc").ended()
        tenure.end()
        assert LeaseWatch(file, "1-abc").ended()
        assert living_holder(file) is not None
    assert living_holder(file) is None


def test_there_is_one_launcher_at_a_time(tmp_path):
    file = tmp_path / "lease"
    with Tenure(file), pytest.raises(UserError, match="has a launcher, process"), Tenure(file):
        pass


def test_the_lease_of_a_dead_launcher_is_taken_over(tmp_path):
    file = tmp_path / "lease"
    Holder("5-dead", "elsewhere", 17).write(file)
    with Tenure(file) as tenure:
        assert LeaseWatch(file, "5-dead").ended()
        assert not tenure.lost


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"attempt": "a"}'])
def test_a_damaged_lease_is_nobodys(tmp_path, content):
    file = tmp_path / "lease"
    file.write_bytes(content)
    assert living_holder(file) is None
    with Tenure(file):
        assert living_holder(file).pid == os.getpid()


def test_a_launcher_sees_that_another_one_took_over(tmp_path):
    file = tmp_path / "lease"
    with Tenure(file) as tenure:
        Holder("", "elsewhere", 17).write(file)
        wait_for(lambda: tenure.lost)
    assert read(file)[0].host == "elsewhere"


def test_a_launcher_that_slept_takes_nothing_back(tmp_path):
    file = tmp_path / "lease"
    with Tenure(file) as tenure:
        tenure.begin("1-ours")
        Holder("2-theirs", "elsewhere", 17).write(file)
        tenure.end()
        assert tenure.lost
        with pytest.raises(UserError, match="Another launcher has taken over"):
            tenure.begin("3-ours")
    assert read(file)[0] == Holder("2-theirs", "elsewhere", 17)


def test_of_two_at_the_same_moment_one_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "lease"
    ours = Tenure(file)
    # The other one saw no holder either, and writes last.
    monkeypatch.setattr(tenure.time, "sleep", lambda _: Holder("", "elsewhere", 17).write(file))
    with pytest.raises(UserError, match="process 17 on elsewhere"), ours:
        pass
    assert read(file)[0].host == "elsewhere"


def test_a_holder_is_told_that_it_has_lost_the_run(tmp_path):
    lost = Event()
    file = tmp_path / "lease"
    with Tenure(file, lost.set):
        Holder("", "elsewhere", 17).write(file)
        assert lost.wait(20 * BEAT_SECONDS)

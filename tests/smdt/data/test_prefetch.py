"""Work ahead: in order, bounded, exceptions at their turn, and no thread left."""

import threading
import time
from contextlib import closing
from functools import partial
from itertools import count
from threading import Event

import pytest

from smdt.data.prefetch import FINISHED_AHEAD, prefetch_jobs, prefetch_one


def running() -> int:
    return sum(thread.name.startswith("smdt-") for thread in threading.enumerate())


def wait_for(condition):
    give_up = time.monotonic() + 10
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.001)


def square_of_sum(_, pieces):
    return sum(pieces) ** 2


def ahead_of(jobs, piece=lambda value: value, finish=square_of_sum, threads=4, ahead=3, **options):
    return prefetch_jobs(
        jobs,
        lambda job: [partial(piece, job + part) for part in range(3)],
        finish,
        threads=threads,
        finishers=options.get("finishers", 2),
        ahead=ahead,
        stopping=options.get("stopping", Event()),
    )


@pytest.mark.parametrize(
    ("threads", "finishers", "ahead", "jobs"),
    [(1, 1, 1, 20), (4, 2, 3, 20), (2, 3, 9, 4), (2, 2, 2, 0)],
)
def test_results_come_in_order(threads, finishers, ahead, jobs):
    def sleepy(value):
        time.sleep(0.002 * (value * 7 % 5))
        return value

    def finish(job, pieces):
        assert pieces == [job, job + 1, job + 2]
        return square_of_sum(job, [sleepy(piece) for piece in pieces])

    made = ahead_of(range(jobs), sleepy, finish, threads=threads, ahead=ahead, finishers=finishers)
    assert list(made) == [(3 * job + 3) ** 2 for job in range(jobs)]
    assert running() == 0


def test_work_ahead_is_bounded():
    started = []
    made = ahead_of((started.append(i) or i for i in count()), ahead=5)
    for taken in range(1, 10):
        next(made)
        wait_for(lambda taken=taken: len(started) >= taken + 5 + FINISHED_AHEAD)
        time.sleep(0.01)
        assert len(started) == taken + 5 + FINISHED_AHEAD
    made.close()


def test_the_next_results_are_made_before_they_are_asked_for():
    made_so_far = []
    made = ahead_of(count(), finish=lambda job, _: made_so_far.append(job))
    for taken in range(1, 4):
        next(made)
        wait_for(lambda taken=taken: len(made_so_far) >= taken + FINISHED_AHEAD)
        time.sleep(0.01)
        assert sorted(made_so_far) == list(range(taken + FINISHED_AHEAD))
    made.close()


@pytest.mark.parametrize("where", ["piece", "finish", "jobs"])
def test_an_exception_comes_at_its_turn(where):
    error = KeyError("the seventh")

    def fail_at(place, value, wanted):
        if place == where and value == wanted:
            raise error
        return value

    made = ahead_of(
        (fail_at("jobs", job, 7) for job in range(20)),
        piece=lambda value: fail_at("piece", value, 9),  # the last piece of job 7
        finish=lambda job, _: fail_at("finish", job, 7),
    )
    results = []
    with pytest.raises(KeyError) as caught:
        results += made
    assert caught.value is error
    assert running() == 0
    assert where == "jobs" or results == list(range(7))


@pytest.mark.parametrize("taken", range(9))
def test_closing_at_any_moment_leaves_no_thread(taken):
    made = ahead_of(range(8), lambda value: time.sleep(0.001) or value)
    for _ in zip(range(taken), made, strict=False):
        pass
    start = time.perf_counter()
    made.close()
    assert time.perf_counter() - start < 2
    assert running() == 0


def test_closing_drops_queued_work_and_sets_the_flag():
    stopping, begun = Event(), []

    def wait(value):
        begun.append(value)
        stopping.wait(10 if value > 2 else 0)
        return value

    made = ahead_of(count(), wait, threads=2, ahead=50, stopping=stopping)
    next(made)
    start = time.perf_counter()
    made.close()
    assert time.perf_counter() - start < 2
    assert running() == 0
    assert len(begun) < 10


def test_one_ahead_works_on_the_next_while_one_is_used():
    started = []
    with closing(prefetch_one(lambda job: started.append(job) or job**2, range(5))) as results:
        assert next(results) == 0
        wait_for(lambda: started == [0, 1])
        assert started == [0, 1]
        assert list(results) == [1, 4, 9, 16]
    assert running() == 0
    assert list(prefetch_one(abs, [])) == []


def test_one_ahead_raises_at_the_failing_jobs_turn():
    results = prefetch_one(lambda job: 1 // job, [2, 1, 0])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert running() == 0

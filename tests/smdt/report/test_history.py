from smdt.report.history import KILLED, attempts


def line(event, time=0.0, **facts):
    return {"time": time, "event": event, **facts}


def started(step, ranks=2):
    return line("started", 1_700_000_000.0, step=step, ranks=ranks)


def ends(history, status):
    return [attempt.end for attempt in attempts(history, status)]


def test_an_attempt_counts_what_it_saved():
    saves = [line("saved", step=step, seconds=1.0, bytes=5) for step in (10, 20)]
    (attempt,) = attempts([started(0), *saves, line("done", step=20)], "done")
    assert (attempt.from_step, attempt.ranks) == (0, 2)
    assert (attempt.saved, attempt.last_saved) == (2, 20)
    assert attempt.end == "done at step 20"
    assert attempt.when == "2023-11-14 22:13:20 UTC"


def test_an_attempt_that_says_nothing_of_its_end_was_killed():
    assert ends([started(0), started(10), line("preempted", step=12)], "preempted") == [
        KILLED,
        "preempted at step 12",
    ]
    assert ends([started(0)], "failed") == [KILLED]
    assert ends([started(0)], "running") == [None]


def test_a_failure_is_told_once_whichever_ranks_tell_it():
    why = [line("failed", reason="no space"), line("failed", reason="a partner is gone")]
    assert ends([started(0), *why, started(5)], "running") == ["failed: no space", None]


def test_a_run_that_failed_before_it_trained_was_never_started():
    (attempt,) = attempts([line("failed", reason="no shards")], "failed")
    assert attempt.when == "never"
    assert attempt.end == "failed: no shards"


def test_nothing_is_known_of_nothing():
    assert attempts([], "unknown") == []

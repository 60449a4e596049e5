import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from smdt.report.curves import charts, curves, times
from smdt.report.history import attempts
from smdt.training.checkpoints.run_folder import RunFolder

STEP = {"learning_rate": {"e": 0.1}, "gradient_norm": {"e": 1.0}, "losses": {"loss": 1.0}}


def step(number, seconds, wait=0.0, collectives=0.0):
    times = {"data_wait_seconds": wait, "collective_wait_seconds": collectives}
    return {"step": number, "step_seconds": seconds, **times, **STEP}


def test_all_time_of_the_steps_went_somewhere():
    records = [step(1, 2.0, 0.5, 0.25), {"step": 1, "scores": {}}, step(2, 2.0, 0.5, 0.75)]
    saves = [{"event": "started"}, {"event": "saved", "seconds": 3.0}]
    assert times(records, saves, 8) == {
        "steps": "2",
        "in steps": "4.0 s, 4.0 samples/s",
        "waiting for data": "1.0 s, 25.0%",
        "in collectives": "1.0 s, 25.0%",
        "computing": "2.0 s, 50.0%",
        "saving checkpoints, between steps": "3.0 s, 1 times",
    }
    assert times([], saves, 8) == {}


def test_throughput_is_samples_over_time_however_steps_vary():
    # Each point is of two steps, 0.1 and 0.3 s: 16 samples in 0.4 s, not the mean of 80 and 27.
    chart = charts([step(n, 0.1 if n % 2 else 0.3) for n in range(800)], 8)["Throughput"]
    assert ">40<" in chart
    assert ">80<" not in chart


def test_terms_of_several_sizes_have_charts_of_their_own():
    losses = {"losses": {"generators": 80.0, "l1": 0.1}}
    assert {"Loss: generators", "Loss: l1"} <= charts([{**step(1, 1.0), **losses}], 8).keys()
    assert "Loss" in charts([step(1, 1.0)], 8)


def test_curves_begin_where_their_values_do():
    records = [step(1, 1.0), step(2, 1.0), step(3, 1.0)]
    records[0]["losses"] = {"loss": 3.0, "early": 1.0}
    records[1]["losses"] = {"loss": math.nan, "late": 5.0}
    records[2]["losses"] = {"loss": None, "late": 6.0}
    assert curves(records, "losses") == {
        "loss": [(1, 3.0)],
        "early": [(1, 1.0)],
        "late": [(2, 5.0), (3, 6.0)],
    }
    assert {"Loss: loss", "Loss: early", "Loss: late"} <= charts(records, 8).keys()


def test_scores_that_a_later_evaluation_has_begin_there():
    scored = [
        {"step": 10, "scores": {"R@1": 0.25}},
        {"step": 20, "scores": {"R@1": 0.5, "hit rate": 0.75}},
        {"step": 30, "scores": {"hit rate": 1.0}},
    ]
    assert curves(scored, "scores") == {
        "R@1": [(10, 0.25), (20, 0.5)],
        "hit rate": [(20, 0.75), (30, 1.0)],
    }
    assert "hit rate on the held-out split" in charts(scored, 8)


def test_of_a_step_that_stands_twice_the_last_record_counts_and_steps_ascend():
    records = [{"step": n, "losses": {"loss": float(at)}} for at, n in enumerate((1, 3, 2, 3))]
    assert curves(records, "losses") == {"loss": [(1, 0.0), (2, 2.0), (3, 3.0)]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBERS = st.floats() | st.integers(-3, 40) | st.just(10**400) | JSON
KEYS = ("step", "losses", "scores", "learning_rate", "gradient_norm", "step_seconds")
RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from((*KEYS, "data_wait_seconds", "collective_wait_seconds")),
        NUMBERS | st.dictionaries(st.sampled_from(("loss", "R@1", "x")), NUMBERS, max_size=3),
        max_size=8,
    ),
    max_size=12,
)
HISTORY = st.lists(
    st.dictionaries(
        st.sampled_from(("time", "event", "step", "ranks", "seconds", "reason")),
        NUMBERS | st.sampled_from(("started", "saved", "failed", "done", "preempted")),
        max_size=6,
    ),
    max_size=8,
)


@settings(deadline=None)
@given(records=RECORDS, history=HISTORY, global_batch=st.integers(1, 64))
def test_whatever_the_files_hold_there_is_a_report_of_it(records, history, global_batch):
    for chart in charts(records, global_batch).values():
        assert "nan" not in chart
        assert "inf" not in chart
    times(records, history, global_batch)
    assert all(each.when for each in attempts(history, "done"))


def test_lines_that_are_no_records_are_left_out(tmp_path):
    run = RunFolder(tmp_path)
    good = [json.dumps({"step": n, "losses": {"loss": 1.0}}).encode() for n in (1, 2)]
    odd = [b"", b"[1]", b"5", b"null", b"\xff\xfe", b"\0\0\0", b'{"step": 3, "los']
    run.metrics.write_bytes(b"\n".join([good[0], *odd[:-1], good[1], odd[-1]]))
    assert [record["step"] for record in run.read_metrics()] == [1, 2]
    run.rewind_metrics(1)
    assert [record["step"] for record in run.read_metrics()] == [1]
    run.metrics.write_bytes(b"")
    assert list(run.read_metrics()) == []

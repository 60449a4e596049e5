from smdt.report.curves import charts, times

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
        "saving checkpoints, beside the steps": "3.0 s, 1 times",
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

import pytest

from data_shards.build.progress import Work
from data_shards.console import BuildProgressBar


@pytest.mark.parametrize("before", [0, 900])
def test_rate_and_time_left_are_of_this_run(before):
    now = [100.0]
    bar = BuildProgressBar("build", clock=lambda: now[0])
    bar.begin(Work(10, 9, 1000, before))
    (task,) = bar.progress.tasks
    rate, left = bar.progress.columns[-2:]
    assert (str(rate.render(task)), str(left.render(task))) == ("0/s", "-:--:--")
    bar.advance(40)
    now[0] += 8
    seconds_left = (1000 - before - 40) / 5
    assert str(rate.render(task)) == "5/s"
    hours, minutes, seconds = map(int, str(left.render(task)).split(":"))
    assert hours * 3600 + minutes * 60 + seconds == seconds_left
    assert task.completed == before + 40

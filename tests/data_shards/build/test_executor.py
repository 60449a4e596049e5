import operator

import pytest

from data_shards.build.executor import no_progress, run_tasks


@pytest.mark.parametrize("workers", [1, 2, None])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_task_runs_once(workers, count):
    results = run_tasks(operator.ne, list(range(count)), workers, no_progress)
    assert list(results) == [True] * count


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller(workers):
    with pytest.raises(TypeError):
        list(run_tasks(operator.add, [1, 2, 3], workers, no_progress))


def test_the_caller_may_stop_early():
    results = run_tasks(operator.ne, list(range(20)), 2, no_progress)
    assert next(results)
    results.close()
    assert list(results) == []

import math
import time

import pytest
import torch

from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.deepspeed.collectives import CollectiveTimer
from smdt.training.loop.stage import StepContext
from smdt.training.loop.step_recorder import StepRecorder
from smdt.training.loop.step_status import StepStatus

CPU = torch.device("cpu")


class PlainEngine:
    """What is measured of an engine, without DeepSpeed; it was restored after 7 skipped steps."""

    learning_rate = 0.01
    gradient_norm = torch.tensor(2.0)
    loss_scale = 8.0
    skipped_steps = 7
    scales_loss = False


def values(metrics):
    return {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.removesuffix("_total") != "smdt_loss"
    }


@pytest.fixture
def engine():
    return PlainEngine()


@pytest.fixture
def metrics():
    return TrainingMetrics("run", "retrieval", 1)


@pytest.fixture
def watch(engine, metrics):
    context = StepContext(0, 0, 1, 2, 1, CPU)
    return StepRecorder(
        {"towers": engine},
        CollectiveTimer(),
        metrics,
        context=context,
        global_batch=10,
        ideal_step_seconds=0.05,
    )


def make(watch, step, wait=0.1, compute=0.2):
    watch.start_step()
    time.sleep(wait)
    with watch.measure_compute(step, epoch=3):
        time.sleep(compute)
    watch.end_step(step)


def test_a_step_is_told_as_it_was_measured(watch, metrics):
    watch.start_run(4, 20)
    make(watch, 5)
    make(watch, 6, wait=0.0)
    assert values(metrics)["smdt_steps_total"] == 0, "nobody has agreed yet"
    record = watch.publish(StepStatus(5, stop=False, finite=True, losses={"loss": 0.5}))
    assert record.step_seconds == pytest.approx(0.3, abs=0.05)
    assert record.data_wait_seconds == pytest.approx(0.1, abs=0.05)
    assert record.compute_seconds == pytest.approx(0.2, abs=0.05)
    assert record.gradient_norm == {"towers": 2.0}
    told = values(metrics)
    assert told["smdt_step"] == 5
    assert told["smdt_steps_planned"] == 20
    assert told["smdt_epoch"] == 3
    assert told["smdt_samples_total"] == 5, "half of the global batch"
    assert told["smdt_step_seconds_count"] == told["smdt_steps_total"] == 1
    assert told["smdt_model_flops_utilization"] == pytest.approx(0.05 / 0.3, rel=0.2)
    assert told["smdt_loss_scale"] == 8
    assert metrics.loss("loss")._value.get() == 0.5


def test_what_was_skipped_before_a_resume_is_not_counted_again(watch, engine, metrics):
    watch.start_run(4, 20)
    assert values(metrics)["smdt_skipped_steps_total"] == 0
    engine.skipped_steps = 9
    make(watch, 5)
    watch.publish(StepStatus(5, stop=False, finite=True, losses={}))
    assert values(metrics)["smdt_skipped_steps_total"] == 2


def test_a_loss_that_is_not_finite_is_exported_and_counted(watch, metrics):
    make(watch, 1)
    watch.publish(StepStatus(1, stop=False, finite=False, losses={"loss": math.nan}))
    assert values(metrics)["smdt_nonfinite_steps_total"] == 1
    assert math.isnan(metrics.loss("loss")._value.get())


@pytest.mark.parametrize("scales_loss", [False, True])
def test_a_skipped_step_is_lost_unless_it_served_to_find_the_loss_scale(
    watch, engine, metrics, scales_loss
):
    engine.scales_loss = scales_loss
    for step, skipped in ((1, 7), (2, 8), (3, 8)):
        engine.skipped_steps = torch.tensor(float(skipped))
        make(watch, step, wait=0.0, compute=0.0)
    told = [watch.publish(StepStatus(n, stop=False, finite=True, losses={})) for n in (1, 2, 3)]
    assert [record.finite for record in told] == [True, scales_loss, True]
    assert values(metrics)["smdt_nonfinite_steps_total"] == (not scales_loss)
    assert values(metrics)["smdt_skipped_steps_total"] == 1


def test_a_run_that_makes_no_step_has_a_time_from_which_it_stalls(watch, metrics):
    watch.start_run(0, 20)
    assert time.time() - values(metrics)["smdt_last_step_timestamp_seconds"] < 5

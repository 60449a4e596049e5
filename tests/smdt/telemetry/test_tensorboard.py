import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_shards.base.errors import InputError
from smdt.telemetry.exporter import TelemetryConfig
from smdt.telemetry.tensorboard import EventWriter, TensorBoard


def curves(folder):
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_reads_the_curves(tmp_path):
    events = TensorBoard(tmp_path, 0)
    for step in (1, 2):
        events.step(step, {"loss": {"loss": step / 4}, "seconds": {"step": 0.5}})
    events.step(2, {"score": {"R@1": 0.75}})
    events.close()
    assert curves(tmp_path) == {
        "loss/loss": [(1, 0.25), (2, 0.5)],
        "seconds/step": [(1, 0.5), (2, 0.5)],
        "score/R@1": [(2, 0.75)],
    }


@pytest.mark.slow
def test_steps_that_a_resumed_run_repeats_are_there_once(tmp_path):
    killed = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        killed.step(step, {"loss": {"loss": 1.0}})
    killed.close()
    resumed = TensorBoard(tmp_path, 1)
    resumed.step(2, {"loss": {"loss": 0.5}})
    resumed.close()
    assert curves(tmp_path)["loss/loss"] == [(1, 1.0), (2, 0.5)]


def test_without_the_package_a_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=r"pip install 'smdt\[tensorboard\]'"):
        TelemetryConfig(tensorboard=True).check()
    TelemetryConfig().check()


def test_a_run_that_wants_none_writes_none(tmp_path):
    EventWriter().step(1, {"loss": {"loss": 1.0}})
    assert list(tmp_path.iterdir()) == []

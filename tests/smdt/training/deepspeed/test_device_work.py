import math
import time

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from smdt.training.deepspeed import device_work
from smdt.training.deepspeed.device_work import DeviceScalars, DeviceTimer

GPU = torch.device("cuda", 0)


def test_on_a_cpu_the_wall_clock_counts():
    watch = DeviceTimer(torch.device("cpu"))
    with watch.running():
        time.sleep(0.05)
    time.sleep(0.05)
    assert watch.seconds() == pytest.approx(0.05, abs=0.03)


class Mark:
    """A mark of a device whose work takes as long as the test says."""

    now_ms = 0.0

    def __init__(self, device):
        self.reached_ms = None
        self.waited_for = False

    def record(self):
        self.reached_ms = Mark.now_ms

    def synchronize(self):
        self.waited_for = True

    def elapsed_time(self, end):
        return end.reached_ms - self.reached_ms


@pytest.fixture
def marks(monkeypatch):
    """The marks that were made for a GPU that is not there."""
    made = []

    def new_mark(device):
        made.append(Mark(device))
        return made[-1]

    monkeypatch.setattr(device_work, "new_mark", new_mark)
    return made


def test_an_accelerator_is_asked_only_when_the_seconds_are_read(marks):
    watch = DeviceTimer(GPU)
    Mark.now_ms = 1000.0
    with watch.running():
        Mark.now_ms = 3500.0
    assert not any(mark.waited_for for mark in marks)
    assert watch.seconds() == 2.5
    assert [mark.waited_for for mark in marks] == [False, True]
    assert watch.seconds() == 2.5


def test_scalars_of_a_cpu_are_here_in_their_order():
    made = DeviceScalars({"loss": torch.tensor(0.5), "norm": float("nan"), "other": torch.ones(1)})
    assert made.ready
    values = made.values()
    assert list(values) == ["loss", "norm", "other"]
    assert (values["loss"], values["other"]) == (0.5, 1.0)
    assert math.isnan(values["norm"])


def test_nothing_of_a_gpu_is_read_when_a_step_ends(marks):
    """torch's fake tensors have no values: to read one, as waiting for a GPU does, is refused."""
    with FakeTensorMode():
        loss, norm = torch.empty((), device=GPU), torch.empty(1, device=GPU)
        with pytest.raises(DataDependentOutputException):
            float(loss)
        made = DeviceScalars({"loss": loss, "norm": norm, "scale": 2.0})
    assert not made.ready
    assert len(marks) == 1
    assert not marks[0].waited_for

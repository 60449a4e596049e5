"""Telemetry of a GPU waits for nothing until it is read."""

import pytest
import torch

from smdt.telemetry.memory import memory_readers
from smdt.training.deepspeed.device_work import DeviceScalars, DeviceTimer


def test_a_step_s_figures_are_noted_without_waiting(gpu):
    """torch is asked to refuse whatever would wait for the device."""
    matrix = torch.randn(4096, 4096, device=gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch = DeviceTimer(gpu)
        with watch.running():
            for _ in range(50):
                matrix = (matrix @ matrix).clamp(-1, 1)
        made = DeviceScalars({"loss": matrix.abs().max(), "norm": matrix.new_ones(1), "scale": 2.0})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not made.ready
    assert made.values() == {"loss": pytest.approx(1.0, abs=1.0), "norm": 1.0, "scale": 2.0}
    assert watch.seconds() > 1e-4


def test_memory_is_what_torch_has(gpu):
    readers = memory_readers(gpu)
    before = readers["allocated"]()
    held = torch.empty(10_000_000, device=gpu)
    assert readers["allocated"]() - before >= held.nbytes
    assert readers["peak"]() >= readers["allocated"]()
    assert readers["reserved"]() >= readers["allocated"]()

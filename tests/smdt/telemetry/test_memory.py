import mmap
import resource

import numpy as np
import pytest
import torch

from smdt.telemetry.memory import memory_readers, process_bytes


def test_a_cpu_s_memory_is_that_of_the_process():
    readers = memory_readers(torch.device("cpu"))
    before = readers["resident"]()
    with mmap.mmap(-1, 64_000_000) as held:  # new pages, whatever the heap has kept
        held.write(bytes(len(held)))
        assert readers["resident"]() - before == pytest.approx(len(held), rel=0.1)
    kernel = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert readers["peak"]() == pytest.approx(kernel, rel=0.05)


def test_what_the_system_does_not_tell_is_unknown(tmp_path):
    assert np.isnan(process_bytes("VmRSS", tmp_path / "status"))

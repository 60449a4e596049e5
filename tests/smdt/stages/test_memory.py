"""Memory of a step grows with the chunk and not with the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SCRIPT = """
import json, resource, sys
import numpy as np
import torch
import torch.distributed as dist

from smdt.stages.retrieval.config import RetrievalConfig
from smdt.data.batch import Batch
from smdt.data.order import DataState
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.training.loop.stage import StepContext
from tests.plain_engine import PlainEngine

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
config = RetrievalConfig.model_validate({
    "stage": "retrieval",
    "run": {"name": "memory", "out": "."},
    "data": {"shards": "."},
    "aerial": "polar",
    "geometry": {"panorama_size": [64, 256]},
    "model": {"layers": 4},
    "loss": {"name": sys.argv[2]},
})
stage = RetrievalStage(config)
engine = PlainEngine(stage.towers)

def step(pairs, chunks):
    images = {
        "ground": torch.zeros(pairs, 64, 256, 3, dtype=torch.uint8),
        "aerial": torch.zeros(pairs, 64, 64, 3, dtype=torch.uint8),
    }
    unknown = np.full(pairs, np.nan)
    batch = Batch(
        epoch=0, index=0, sample_ids=np.arange(pairs), shown=np.arange(pairs)[:, None],
        images=images, heading_deg=unknown, extent_m=unknown, elevation_min=unknown,
        elevation_max=unknown, state=DataState("", 0, 0, 0),
    )
    stage.step({"two_tower": engine}, batch, StepContext(0, 0, 0, 1, chunks, torch.device("cpu")))

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def peak(pairs, chunks):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts from here
    before = kilobytes("VmRSS")
    step(pairs, chunks)
    return kilobytes("VmHWM") - before

step(2, 1)
one = peak(8, 1)
four = peak(32, 4)
# From here on there is room for one and a half times what a batch of 8 took.
room = 1024 * (kilobytes("VmData") + one // 2 * 3)
resource.setrlimit(resource.RLIMIT_DATA, (room, room))
step(32, 4)
try:
    step(32, 1)
    whole = "fits"
except RuntimeError as error:
    whole = str(error)
print(json.dumps({"one": one, "four": four, "whole": whole}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["soft_margin", "info_nce"])
def test_a_batch_four_times_beyond_memory_trains(loss, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "group", loss],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert peak["four"] < 1.25 * peak["one"]
    assert "can't allocate memory" in peak["whole"]

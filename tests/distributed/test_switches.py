"""Switches of the towers and of their optimizer under DeepSpeed, on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smdt.training.engine import free_port
from tests.distributed.runs import DEEPSPEED_FILES, ROOT

SCRIPT = Path(__file__).parent / "switch_steps.py"


@pytest.mark.timeout(900)
def test_switches_do_what_they_say_on_every_zero_stage(write_config, tmp_path):
    config = write_config(
        tmp_path / "run",
        model={
            "dropout": 0.3,
            # layers large enough for ZeRO 3 to part them
            "width": 128,
            "layers": 2,
            "stem": {"kind": "resnet", "width": 8, "blocks": [1, 1, 1], "groups": 4},
        },
        batch={"global": 8},
    )
    out = tmp_path / "found.json"
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", ""]
    places = ["--num_gpus", "2", "--master_port", str(free_port())]
    subprocess.run(
        [*launcher, *places, SCRIPT, config, DEEPSPEED_FILES, out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=600,
    )
    found = json.loads(out.read_text())
    assert set(found) == {"zero0", "zero1", "zero2", "zero3"}
    for stage, one in found.items():
        assert one["learned"] > 1e-3, stage
        assert one["checkpointing"] == 0, stage
        # a first step of Adam is the rate times what the gradient alone decides
        assert one["decay over layers"] < 1e-6, stage
        assert one["update without decay"] > 1e-4, stage

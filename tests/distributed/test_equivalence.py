"""A step is the same function of the global batch for every rank count, chunk count, ZeRO stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smdt.training.engine import free_port
from tests.distributed.runs import DEEPSPEED_FILES, ROOT

SCRIPT = Path(__file__).parent / "loss_curves.py"


def loss_curves(config: Path, ranks: int, out: Path) -> dict[str, list[float]]:
    """Every ZeRO stage and chunk count in one launch of `deepspeed`."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", ""]
    places = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
    subprocess.run(
        [*launcher, *places, SCRIPT, config, DEEPSPEED_FILES, out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=600,
    )
    return json.loads(out.read_text())


@pytest.mark.timeout(900)
def test_thirty_steps_have_one_loss_curve(write_config, tmp_path):
    config = write_config(
        tmp_path / "run",
        model={"dropout": 0.0, "width": 64, "layers": 2},
        # Adam divides by the root of tiny gradients and so makes rounding grow; a larger epsilon
        # keeps it what it is, a test of the step and not of chaos.
        optimizer={"learning_rate": 3e-4, "epsilon": 1e-4},
        precision="fp32",
    )
    curves = {
        f"ranks{ranks}-{case}": curve
        for ranks in (1, 2)
        for case, curve in loss_curves(config, ranks, tmp_path / f"{ranks}.json").items()
    }
    assert len(curves) == 16
    reference = np.array(curves["ranks1-zero0-chunks1"])
    assert len(reference) == 30
    assert reference[-5:].mean() < 0.9 * reference[:5].mean(), "nothing was learned to compare"
    for case, curve in curves.items():
        # Rounding is all that differs; thirty steps make it grow, a lost negative shows at once.
        np.testing.assert_allclose(curve[:10], reference[:10], rtol=1e-5, err_msg=case)
        np.testing.assert_allclose(curve, reference, rtol=2e-3, err_msg=case)

"""A step is the same function of the global batch for every rank count, chunk count, ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.runs import DEEPSPEED_FILES, deepspeed
from tests.plain_losses import PLAIN_LOSSES

SCRIPT = Path(__file__).parent / "loss_curves.py"


def run_cases(
    config: Path, ranks: int, losses: str, chunks: str, out: Path
) -> dict[str, dict[str, Any]]:
    """Every loss, ZeRO stage and chunk count in one launch of `deepspeed`."""
    deepspeed(SCRIPT, ranks, config, DEEPSPEED_FILES, losses, chunks, out, seconds=900)
    return json.loads(out.read_text())


def loss_curves(config: Path, ranks: int, out: Path) -> dict[str, list[float]]:
    """Loss of every step of the paper's loss, by ZeRO stage and chunk count."""
    cases = run_cases(config, ranks, "soft_margin", "1,2", out)
    return {case.removeprefix("soft_margin-"): found["losses"] for case, found in cases.items()}


@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    "launches",
    [
        {1: "1", 2: "1,2"},
        pytest.param({1: "1,2,8", 2: "1,4", 4: "1,2"}, marks=pytest.mark.full),
    ],
    ids=["short", "full"],
)
def test_every_way_to_run_has_one_loss_curve_and_the_gradient_of_the_whole_batch(
    write_config, tmp_path, launches
):
    config = write_config(
        tmp_path / "run",
        model={"dropout": 0.0, "width": 64, "layers": 2},
        # Adam divides by the root of tiny gradients and so makes rounding grow; a larger epsilon
        # keeps it what it is, a test of the step and not of chaos.
        optimizer={"learning_rate": 3e-4, "epsilon": 1e-4},
        precision="fp32",
    )
    cases = {
        f"ranks{ranks}-{case}": found
        for ranks, chunks in launches.items()
        for case, found in run_cases(
            config, ranks, ",".join(PLAIN_LOSSES), chunks, tmp_path / f"{ranks}.json"
        ).items()
    }
    assert len(cases) == 8 * sum(len(chunks.split(",")) for chunks in launches.values())
    for loss in PLAIN_LOSSES:
        reference = np.array(cases[f"ranks1-{loss}-zero0-chunks1"]["losses"])
        assert reference[-5:].mean() < 0.95 * reference[:5].mean(), "nothing was learned to compare"
        for case, found in cases.items():
            if loss not in case:
                continue
            assert found["gradient_error"] < 1e-4, case
            # Rounding is all that differs; steps make it grow, a lost negative shows at once.
            np.testing.assert_allclose(
                found["losses"][:10], reference[:10], rtol=1e-5, err_msg=case
            )
            np.testing.assert_allclose(found["losses"], reference, rtol=2e-3, err_msg=case)

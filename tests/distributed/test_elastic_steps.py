"""The losses of a run do not depend on how many ranks make which of its steps."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.elastic_steps import TOTAL, ZERO_STAGES
from tests.distributed.runs import DEEPSPEED_FILES, WITHOUT_DROPOUT, deepspeed

SCRIPT = Path(__file__).parent / "elastic_steps.py"
RANKS = {4: 2, 8: 1, 12: 3}
"""Ranks that make the steps up to each step; an epoch has 5."""
CALM = {"learning_rate": 3e-4, "epsilon": 1e-4}
"""Adam divides by the root of tiny gradients, which makes rounding grow; a larger epsilon not."""
STAGES = {
    "retrieval": {"model": {"dropout": 0.0, "width": 64, "layers": 2}},
    "segmentation": WITHOUT_DROPOUT,
    "alignment": {
        "stage": "alignment",
        "model": {"generator_width": 2, "discriminator_width": 2},
    },
}


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_steps_on_2_then_1_then_3_ranks_have_the_losses_of_2(write_config, tmp_path):
    yamls = tmp_path / "yamls"
    yamls.mkdir()
    for name, sections in STAGES.items():
        batch = {"batch": {"global": 12}, "precision": "fp32"}
        written = write_config(tmp_path / name, **batch, **{**sections, "optimizer": CALM})
        written.rename(yamls / f"{name}.yaml")
    out = tmp_path / "runs"
    for end, ranks in RANKS.items():
        deepspeed(SCRIPT, ranks, yamls, DEEPSPEED_FILES, out, end)
    for name in (*STAGES, "small"):
        for zero in ZERO_STAGES:
            run = RunFolder(out / f"{name}-zero{zero}")
            whole = json.loads((out / "whole" / run.root.name / "losses.json").read_text())
            parts = [json.loads((run.root / f"losses-{end}.json").read_text()) for end in RANKS]
            assert [len(part) for part in parts] == [4, 4, 4]
            np.testing.assert_allclose(
                np.concatenate(parts), whole, rtol=1e-4, err_msg=run.root.name
            )
            # The universal form of the last conversion is kept, and nothing half made.
            assert len(list(run.universal.glob("*"))) == (zero > 0)
            folder = checkpoint.folder_of(run.checkpoints, TOTAL)
            assert checkpoint.integrity_error(folder) == ""
            assert load_file(folder / checkpoint.WEIGHTS)

"""`smdt evaluate` on two ranks finds what one finds."""

import json
import os
import subprocess
import sys

import pytest

from smdt.stages import config as configuration
from tests.checkpoints import save_untrained
from tests.distributed.runs import ROOT


def evaluate(checkpoint, shards, out, *options, exit_code=0):
    command = [sys.executable, "-m", "smdt.cli", "evaluate", checkpoint, "--shards", shards]
    command += ["--split", "val", "--json", out, *options]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == exit_code, done.stderr
    return json.loads(out.read_text()) if exit_code == 0 else done.stderr


def test_two_ranks_find_what_one_finds(world, write_config, tmp_path):
    trained = tmp_path / "step-00000003"
    save_untrained(trained, configuration.load(write_config(tmp_path / "run")))
    narrow = ["--fov", "180", "--unknown-heading"]
    alone = evaluate(trained, world, tmp_path / "alone.json", *narrow)
    both = evaluate(trained, world, tmp_path / "both.json", *narrow, "--ranks", "2")
    assert both["step"] == alone["step"] == 3
    assert both["protocol"] == alone["protocol"] == "pairs-fov180-unknown-heading"
    assert both["queries"] == 24
    assert both["scores"] == pytest.approx(alone["scores"])
    similarities = [[pair["true_score"] for pair in each["retrievals"]] for each in (alone, both)]
    assert similarities[1] == pytest.approx(similarities[0], abs=1e-5)


@pytest.mark.full
def test_ranks_that_fail_are_one_failure(alignment, world, tmp_path):
    shards_without_classes = tmp_path / "none"
    said = evaluate(alignment.folder, shards_without_classes, tmp_path / "o", exit_code=2)
    assert "none" in said
    options = ["--protocol", "cvusa", "--ranks", "2"]
    said = evaluate(alignment.folder, world, tmp_path / "o", *options, exit_code=2)
    assert "are about retrieval" in said

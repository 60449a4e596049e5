"""`smdt embed` on two ranks makes what one rank makes."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import torch

from smdt.inference.gallery import Gallery
from smdt.stages import config as configuration
from tests.checkpoints import save_untrained
from tests.distributed.runs import ROOT


def embed(checkpoint, shards, out, *options):
    command = [sys.executable, "-m", "smdt.cli", "embed", checkpoint, "--shards", shards]
    command += ["--split", "train", "--out", out, *options]
    subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return Gallery.open(out)


def test_two_ranks_make_the_gallery_of_one(world, write_config, tmp_path):
    save_untrained(tmp_path / "checkpoint", configuration.load(write_config(tmp_path / "run")))
    alone = embed(tmp_path / "checkpoint", world, tmp_path / "alone")
    both = embed(tmp_path / "checkpoint", world, tmp_path / "both", "--ranks", "2")
    torch.testing.assert_close(both.descriptors, alone.descriptors, rtol=1e-5, atol=1e-6)
    assert both.places.equals(alone.places)
    assert np.isfinite(pq.read_table(tmp_path / "both" / "places.parquet")["lat"].to_numpy()).all()

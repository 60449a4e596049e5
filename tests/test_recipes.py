"""The published methods as `configs/` has them: each trains, evaluates and saves, at its own size.

In a folder as the recipes' paths want it, from small copies of the raw data and weights of the
published structure, by the commands that the recipes name. Only batches and lengths are small.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from smdt.stages.segmentation.config import SegmentationConfig
from smdt.training.checkpoints.run_folder import RunFolder
from tests.checkpoints import save_untrained
from tests.distributed.runs import ROOT, SEGMENTATION, fast_precision
from tests.google_weights import google_arrays
from tests.raw_data import WRITERS

pytestmark = [pytest.mark.full, pytest.mark.distributed, pytest.mark.timeout(1200)]

STEPS = 2
SHORT = (
    *("batch.global=2", f"schedule.length={STEPS} steps", "schedule.warmup_steps=0"),
    *(f"checkpoint.every={STEPS} steps", f"evaluation.every={STEPS} steps"),
    *("evaluation.batch=2", "telemetry.metrics_port=0"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the recipes' `weights/` is, and a segmenter."""
    root = tmp_path_factory.mktemp("recipes")
    (root / "weights").mkdir()
    np.savez(root / "weights/R50+ViT-B_16.npz", **google_arrays())
    network = timm.create_model("convnext_base", num_classes=0)
    name = "convnext_base.fb_in22k_ft_in1k_384.safetensors"
    save_file(network.state_dict(), root / "weights" / name)
    sections = {key: value for key, value in SEGMENTATION.items() if value is not None}
    config = {"run": {"name": "s", "out": "unused"}, "data": {"shards": "unused"}, **sections}
    save_untrained(root / "segmenter", SegmentationConfig.model_validate(config))
    return root


def smdt(folder: Path, *words: object) -> None:
    command = [sys.executable, "-m", "smdt.cli", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def train(folder: Path, data: str, recipe: str) -> None:
    """Train a recipe: done, with finite losses, an evaluation and the weights that it names."""
    config = ROOT / "configs" / data / f"{recipe}.yaml"
    deepspeed = ROOT / "configs" / "deepspeed" / "zero2.json"
    smdt(
        folder,
        "train",
        "--config",
        config,
        "--deepspeed_config",
        deepspeed,
        *SHORT,
        *fast_precision(),
    )
    run = RunFolder(folder / "runs" / f"{data}-{recipe}")
    assert run.read_state()["status"] == "done"
    records = list(run.read_metrics())
    losses = [record["losses"]["loss"] for record in records if "losses" in record]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert any("scores" in record for record in records)
    if recipe != "alignment":
        fits = json.loads(run.init.read_text())
        assert fits.pop("source").startswith("weights/")
        towers = [fit for name, fit in fits.items() if name != "loss"]  # InfoNCE's temperature
        assert towers
        assert all(fit["loaded"] and not fit["fresh"] for fit in towers), fits


@pytest.mark.parametrize("data", WRITERS)
def test_the_recipes_of_a_data_set_go_through(folder, data):
    WRITERS[data](folder / "raw" / data)
    plain, classes, aligned = f"data/{data}", f"data/{data}-classes", f"data/{data}-aligned"
    smdt(folder, "shards", "build", data, "--root", f"raw/{data}", "--out", plain)
    smdt(folder, "shards", "verify", plain)

    for recipe in ("l2ltr", "sample4geo"):
        train(folder, data, recipe)

    smdt(folder, "segment", "--shards", plain, "--out", classes, "--checkpoint", "segmenter")
    if data == "cvusa":  # whose recipe takes the annotations that CVUSA comes with
        (folder / plain).rename(folder / "data/cvusa-without-classes")
        (folder / classes).rename(folder / plain)
        classes = plain
    train(folder, data, "alignment")
    alignment = f"runs/{data}-alignment"
    smdt(folder, "align", "--shards", classes, "--out", aligned, "--checkpoint", alignment)
    train(folder, data, "smdt")

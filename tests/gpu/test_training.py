"""Training on GPUs: NCCL makes the CPU's loss curve, half precisions learn, runs end and resume."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import DEEPSPEED_FILES, ROOT, wait_for
from tests.distributed.test_equivalence import loss_curves

pytestmark = pytest.mark.timeout(1800)

RANKS = 2 if torch.cuda.device_count() > 1 else 1
STAGES = {
    "retrieval": {},
    "segmentation": {
        "model": {
            "architecture": "segformer",
            "settings": {
                "depths": [1, 1, 1, 1],
                "hidden_sizes": [16, 32, 48, 64],
                "num_attention_heads": [1, 2, 3, 4],
                "decoder_hidden_size": 64,
            },
            "image_size": [32, 128],
        }
    },
    "alignment": {
        "geometry": {"panorama_size": [32, 128]},
        "model": {"generator_width": 8, "discriminator_width": 8, "feedback_loops": 2},
    },
}


@pytest.fixture
def retrieval(write_config, tmp_path) -> Callable[[str], Path]:
    """Write the YAML of a run whose loss curve depends on rounding as little as can be."""

    def write(precision: str, compiled: bool = False) -> Path:
        return write_config(
            tmp_path / f"{precision}-compiled-{compiled}",
            model={"dropout": 0.0, "width": 64, "layers": 2, "compile": compiled},
            optimizer={"learning_rate": 3e-4, "epsilon": 1e-4},
            precision=precision,
        )

    return write


@pytest.fixture
def on_cpu(retrieval, tmp_path, monkeypatch) -> np.ndarray:
    """The curve of one rank without a GPU."""
    with monkeypatch.context() as without:
        without.setenv("CUDA_VISIBLE_DEVICES", "")
        without.setenv("DS_ACCELERATOR", "cpu")
        curves = loss_curves(retrieval("fp32"), 1, tmp_path / "cpu.json")
    return np.array(curves["zero0-chunks1"])


def assert_learned(curve: np.ndarray) -> None:
    assert np.isfinite(curve).all()
    assert curve[-5:].mean() < 0.95 * curve[:5].mean()


def test_nccl_makes_the_curve_of_gloo(retrieval, on_cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # convolutions would round to 10 bits
    curves = loss_curves(retrieval("fp32"), RANKS, tmp_path / "gpu.json")
    assert len(curves) == 8
    for case, curve in curves.items():
        np.testing.assert_allclose(curve[:10], on_cpu[:10], rtol=1e-4, err_msg=case)
        np.testing.assert_allclose(curve, on_cpu, rtol=1e-2, err_msg=case)


@pytest.mark.parametrize(("precision", "cases"), [("bf16", 8), ("fp16", 6)])
def test_half_precisions_learn(retrieval, on_cpu, tmp_path, precision, cases):
    """fp16 skips the steps in which its scale was too large, and so may lag behind."""
    curves = loss_curves(retrieval(precision), RANKS, tmp_path / "gpu.json")
    assert len(curves) == cases
    for case, curve in curves.items():
        assert_learned(np.array(curve))
        np.testing.assert_allclose(curve[0], on_cpu[0], rtol=0.02, err_msg=case)


def smdt(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "smdt.cli", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def training(config: Path) -> subprocess.Popen[str]:
    settings = DEEPSPEED_FILES / "zero2.json"
    return smdt("train", "--config", config, "--deepspeed_config", settings, "--ranks", RANKS)


def end(process: subprocess.Popen[str], exit_code: int = 0) -> None:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == exit_code, output


def curve_of(run: RunFolder) -> dict[int, float]:
    return {line["step"]: line["losses"]["loss"] for line in run.read_metrics() if "losses" in line}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_stage_trains_evaluates_and_saves(world, write_config, tmp_path, stage, precision):
    run = RunFolder(tmp_path / stage)
    config = write_config(run.root, precision=precision)
    content = yaml.safe_load(config.read_text())
    del content["model"]
    if stage == "segmentation":
        del content["geometry"]
    config.write_text(yaml.safe_dump({**content, "stage": stage, **STAGES[stage]}))
    end(training(config))
    assert run.read_state()["status"] == "done"
    assert len(curve_of(run)) == 24
    assert np.isfinite(list(curve_of(run).values())).all()
    end(smdt("evaluate", run.root, "--shards", world))


def test_a_compiled_run_makes_the_curve_of_a_plain_one(retrieval):
    plain, compiled = (retrieval("fp32", compiled=each) for each in (False, True))
    for config in (plain, compiled):
        end(training(config))
    expected, found = (
        np.array(list(curve_of(RunFolder(config.with_suffix(""))).values()))
        for config in (plain, compiled)
    )
    np.testing.assert_allclose(found[:10], expected[:10], rtol=1e-3)
    np.testing.assert_allclose(found, expected, rtol=2e-2)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(write_config, tmp_path):
    runs = [RunFolder(tmp_path / name) for name in ("undisturbed", "stopped")]
    long = {"length": "12 epochs", "warmup_steps": 4}
    undisturbed, stopped = (write_config(run.root, schedule=long) for run in runs)
    end(training(undisturbed))
    process = training(stopped)
    wait_for(lambda: runs[1].metrics.exists() and len(curve_of(runs[1])) >= 5, process)
    runs[1].stop.touch()
    end(process, exit_code=75)
    assert len(curve_of(runs[1])) < 96
    end(training(stopped))
    whole, pieces = (curve_of(run) for run in runs)
    assert list(pieces) == list(range(1, 97))
    np.testing.assert_allclose(list(pieces.values()), list(whole.values()), rtol=0.02)

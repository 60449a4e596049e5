"""The wiring of `make gpu-check`, without a GPU: what it reads, sums up and writes."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.checks import Check, read_checks
from benchmarks.gpu.decoding import encoded_images, images_per_second
from benchmarks.gpu.page import Results, with_results
from benchmarks.gpu.training import CASES, CONFIGS, WARM_UP_STEPS, Case, figures, measure
from data_shards.base.errors import UserError
from smdt.stages import config as configuration
from smdt.stages.registry import STAGES
from smdt.training.deepspeed.settings import deepspeed_settings
from tests.distributed.runs import ROOT

PAGE = ROOT / "docs" / "gpu.md"


def record(step_seconds: float, wait_seconds: float) -> dict[str, float]:
    return {"step_seconds": step_seconds, "data_wait_seconds": wait_seconds}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", tmp_path / "work"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "No GPU" in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_configurations_parse(case, tmp_path):
    settings = case.settings(tmp_path / "shards", tmp_path / "run", gpus=8)
    config = configuration.load(CONFIGS / case.config, settings)
    configuration.check_ranks(config, world_size=8)
    assert config.batch.global_batch == 8 * case.batch
    filled = deepspeed_settings(
        configuration.load_deepspeed(case.deepspeed_config),
        global_batch=config.batch.global_batch,
        world_size=8,
        precision=config.precision,
        gradient_clipping=config.optimizer.gradient_clipping,
    )
    assert filled["zero_optimization"]["stage"] == case.zero
    assert filled["fp16"]["enabled"] == (case.precision == "fp16")
    assert case.precision != "fp16" or case.zero, "DeepSpeed scales no loss of fp16 on ZeRO 0"


def test_every_stage_and_every_zero_stage_is_measured(tmp_path):
    stages = {
        configuration.load(CONFIGS / case.config, case.settings(tmp_path, tmp_path, 1)).stage
        for case in CASES
    }
    assert stages == set(STAGES)
    assert {case.zero for case in CASES} == {0, 1, 2, 3}


def test_steps_are_summed_up_without_the_first_ones():
    warm_up = [record(100.0, 50.0)] * WARM_UP_STEPS
    steps = [record(0.1, 0.0), record(0.1, 0.01), record(0.4, 0.05)]
    evaluation = {"step": 9, "scores": {"R@1": 0.5}}
    # 3 steps in 0.6 s: 5 a second, of 1e12 operations each, on what can do 20e12
    found = figures([*warm_up, evaluation, *steps], global_batch=8, flops=1e12, tflops=20.0)
    assert found.samples_per_second == pytest.approx(40)
    assert found.step_seconds == pytest.approx(0.1)
    assert found.data_wait == pytest.approx(0.1)
    assert found.model_flops_utilization == pytest.approx(0.25)
    assert figures([*warm_up, *steps], 8, 1e12, None).model_flops_utilization is None
    with pytest.raises(UserError, match="warm up"):
        figures(warm_up, 8, 1e12, None)


@pytest.mark.slow
def test_results_of_tests_are_summed_up_by_file(tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_left_out(): pytest.skip('no')\n"
    )
    report = tmp_path / "report.xml"
    junit = [f"--junit-xml={report}", "--override-ini=junit_family=xunit1"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", tests, *junit]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    (check,) = read_checks(report)
    assert check.file == "test_some.py"
    assert check.passed == 1
    assert check.failed == ["test_bad", "test_left_out"]


def test_results_replace_the_last_section_of_the_page():
    before = PAGE.read_text().partition("\n## Results\n")[0]
    checks = [Check("tests/gpu/test_decoding.py", 12, ["test_class_ids_are_exact"], 3.2)]
    decoding = {"aerial": {"cpu": 1000.0, "gpu": 6000.0}}
    found = figures([record(0.2, 0.0)] * (WARM_UP_STEPS + 1), 16, 1e12, 100.0)
    results = Results(
        {"accelerator 0": "H100"}, checks, decoding, [(CASES[0], found), (CASES[3], None)]
    )
    page = with_results(PAGE.read_text(), results)
    assert page.startswith(before)
    assert "- accelerator 0: H100" in page
    assert "| tests/gpu/test_decoding.py | 12 | test_class_ids_are_exact | 3 |" in page
    assert "| aerial | 1000 | 6000 | 6.0 |" in page
    assert "| 0 | bf16 | 16 | 80.0 | 200.0 | 0.0% | 5.0% |" in page
    assert "| 3 | bf16 | 16 | failed |  |  |  |" in page
    assert with_results(page, results) == page
    assert "none" in with_results(page, replace(results, checks=[Check("file", 1)]))


def test_decoding_is_measured(world):
    images = encoded_images(world, "aerial")
    assert len(images) == 32
    assert images_per_second(images, "aerial", "cpu", seconds=0.1) > 0


@pytest.mark.full
@pytest.mark.distributed
def test_training_is_measured_as_on_one_gpu(world, tmp_path):
    size = ["geometry.panorama_size=[32,128]", "batch.chunks=1", "evaluation.batch=8"]
    case = Case("tiny towers", "world/retrieval.yaml", 2, "bf16", batch=4, overrides=size)
    found = measure(case, world, tmp_path, gpus=1, gpu_name="NVIDIA H100 80GB HBM3")
    assert found.samples_per_second == pytest.approx(4 / found.step_seconds, rel=0.9)
    assert 0 <= found.data_wait < 1
    assert 0 < found.model_flops_utilization < 1e-3  # of an H100's peak, by a CPU

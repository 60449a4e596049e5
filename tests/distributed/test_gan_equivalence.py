"""Ten steps of the GAN are those of a plain PyTorch loop, however ranks and chunks share them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.plain_gan import PlainGan
from smdt.stages import config as configuration
from smdt.stages.alignment.stage import DISCRIMINATORS, GENERATORS, AlignmentStage
from tests.distributed.gan_steps import CASES, OVERFLOWING, STEPS, with_loops
from tests.distributed.runs import DEEPSPEED_FILES, deepspeed
from tests.training_batches import training_batches

SCRIPT = Path(__file__).parent / "gan_steps.py"
Weights = dict[str, torch.Tensor]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_ten_steps_are_those_of_a_plain_loop(write_config, tmp_path):
    yaml = write_config(
        tmp_path / "run",
        stage="alignment",
        model={"generator_width": 2, "discriminator_width": 2},
        # With 100 times L1 nothing of the adversarial losses would be seen.
        loss={"l1_segmentation": 1.0, "l1_image": 1.0},
        # A ReLU whose input rounds across zero changes its gradient at once, instance norm spreads
        # that, and Adam divides by the root of tiny gradients: small steps and a larger epsilon
        # keep rounding what it is. tests/smdt/stages/alignment/test_stage.py compares in float64.
        optimizer={"learning_rate": 1e-5, "epsilon": 1e-2},
        precision="fp32",
    )
    config = configuration.load(yaml)
    expected = {loops: plain_steps(with_loops(config, loops)) for loops in (1, 2)}
    for ranks in (1, 2):
        out = tmp_path / f"ranks{ranks}"
        out.mkdir()
        deepspeed(SCRIPT, ranks, yaml, DEEPSPEED_FILES, out)
        for case in CASES:
            found = load_file(out / case.file)
            name = f"{ranks} ranks, {case}"
            skipped = {key: int(n) for key, n in found.items() if key.startswith("skipped.")}
            if case.scale_power == OVERFLOWING:
                check_overflow(found, expected[case.loops][0], skipped, name)
                continue
            assert set(skipped.values()) == {0}, name
            if case.precision == "fp32":
                compare(found, *expected[case.loops], name)
            else:
                compare_losses(found, expected[case.loops][1], 5e-2, name)
                moved = [not torch.equal(found[key], w) for key, w in expected[1][0].items()]
                assert sum(moved) > 0.9 * len(moved), name


def check_overflow(found: Weights, before: Weights, skipped: dict[str, int], name: str) -> None:
    """Steps whose gradients overflow are skipped and counted, the scale falls, nothing is lost."""
    assert min(skipped.values()) > 0, name
    for engine in ("generators", "discriminators"):
        assert float(found[f"scale.{engine}"]) < 2**OVERFLOWING, (name, engine)
    assert all(found[key].isfinite().all() for key in before), name


def plain_steps(config: configuration.AlignmentConfig) -> tuple[Weights, Weights]:
    """Weights before and after the steps, in fp32, and the losses of each."""
    torch.manual_seed(config.run.seed)
    plain = PlainGan(AlignmentStage(config), config)
    before = weights_of(plain)
    losses = {}
    for step, batch in enumerate(training_batches(config, STEPS)):
        for term, value in plain.step(batch).items():
            losses[f"losses.{step}.{term}"] = torch.tensor(value)
    return before, weights_of(plain) | losses


def weights_of(plain: PlainGan) -> Weights:
    modules = {GENERATORS: plain.generators, DISCRIMINATORS: plain.discriminators}
    return {
        f"{engine}.{name}": parameter.detach().clone()
        for engine, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def compare(found: Weights, before: Weights, after: Weights, name: str) -> None:
    """Losses and weights agree within rounding."""
    compare_losses(found, after, 1e-4, name)
    for key, start in before.items():
        error = (found[key] - after[key]).norm() / (after[key] - start).norm()
        assert error < 0.05, f"{name}, {key}: off by {error:.2%} of what it moved"
        # Weights are of the order of 0.1.
        assert (found[key] - after[key]).abs().max() < 1e-5, f"{name}, {key}"


def compare_losses(found: Weights, wanted: Weights, tolerance: float, name: str) -> None:
    for key in (key for key in wanted if key.startswith("losses.")):
        assert float(found[key]) == pytest.approx(float(wanted[key]), rel=tolerance), (name, key)

"""What a sample costs, against what torch counts in a real step, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smdt.stages.alignment.stage import AlignmentStage
from smdt.stages.base_config import Config
from smdt.stages.config import SCHEMAS
from smdt.stages.registry import make_stage
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.segmentation.stage import SegmentationStage
from smdt.training.loop.stage import StepContext
from tests.training_batches import training_batches

SAMPLES = 4


def counted(work: Callable[[], object]) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def config_of(stage: str, shards: object = "none", **sections: object) -> Config:
    content = {"stage": stage, "run": {"name": "t", "out": "none"}, "data": {"shards": str(shards)}}
    return SCHEMAS[stage].model_validate(content | {"batch": {"global": SAMPLES}} | sections)


def test_both_towers():
    config = config_of("retrieval", geometry={"panorama_size": [32, 128]})
    stage = make_stage(config)
    assert isinstance(stage, RetrievalStage)
    images = torch.randn(SAMPLES, 3, 32, 128)

    def step():
        ground, aerial = stage.towers(images, images)
        (ground * aerial).sum().backward()

    assert SAMPLES * stage.flops_per_sample() == pytest.approx(counted(step), rel=0.1)


@pytest.mark.slow
def test_a_segmenter():
    """torch counts too much in the backward of SegFormer's depthwise convolutions: forward only."""
    stage = make_stage(config_of("segmentation", model={"image_size": [32, 128]}))
    assert isinstance(stage, SegmentationStage)
    images = torch.zeros(SAMPLES, 3, 32, 128, dtype=torch.uint8)
    forward = counted(lambda: stage.segmenter(images))
    assert SAMPLES * stage.flops_per_sample() == pytest.approx(3 * forward)


class PlainEngine:
    """What the alignment's step needs of an engine that updates nothing."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward = module

    def backward(self, share: Tensor) -> None:
        share.backward()

    def step(self, rate_factor: float) -> None:
        pass


@pytest.mark.parametrize("loops", [1, 2])
def test_the_gan(world, loops):
    model = {"generator_width": 4, "discriminator_width": 4, "feedback_loops": loops}
    config = config_of("alignment", world, geometry={"panorama_size": [32, 64]}, model=model)
    stage = make_stage(config)
    assert isinstance(stage, AlignmentStage)
    (batch,) = training_batches(config, 1)
    engines = {name: PlainEngine(module) for name, module in stage.modules().items()}
    context = StepContext(0, 0, 0, 1, 1, torch.device("cpu"))
    step = counted(lambda: stage.step(engines, batch, context))
    assert SAMPLES * stage.flops_per_sample() == pytest.approx(step, rel=0.1)

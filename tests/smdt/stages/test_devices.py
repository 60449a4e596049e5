"""On a GPU all of a step is there: no tensor of the CPU may meet one of the device.

torch's fake tensors know their device and refuse to mix, without a GPU being there. They have no
values and, without a GPU, no backward: what a step does forward is what is checked.
"""

import functools
import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from smdt.data.batch import Batch
from smdt.data.order import DataState
from smdt.losses.contrastive import (
    InfoNceConfig,
    SoftMarginConfig,
    local_contrastive_loss,
    negative_mask,
)
from smdt.stages.base_config import Config
from smdt.stages.config import SCHEMAS
from smdt.stages.registry import make_stage, training_views
from smdt.training.loop.stage import Stage, StepContext

pytestmark = pytest.mark.slow

GPU = torch.device("cuda", 0)
SIZE = (32, 64)
SHARE, RANKS = 4, 2
SECTIONS = {
    "retrieval": {
        "geometry": {"panorama_size": SIZE},
        "augment": {"turn": "quarters", "mirror": True},
        "semantics": {"keep": {"road": 0.5}, "remove": {"vehicle": 0.5}},
    },
    "segmentation": {
        "augment": {"turn": True, "mirror": True},
        "model": {"image_size": SIZE},
    },
    "alignment": {
        "geometry": {"panorama_size": SIZE},
        "augment": {"turn": True, "mirror": True},
        "semantics": {"remove": {"vehicle": 0.5}},
        "model": {"generator_width": 4, "discriminator_width": 4, "feedback_loops": 2},
    },
}


class Forward:
    """An engine that has nothing but the network: no gradients, no optimizer."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.module(*inputs)

    def backward(self, share: torch.Tensor) -> None:
        assert share.device == GPU

    def step(self, rate_factor: float) -> None:
        pass


@pytest.fixture
def on_gpu() -> Iterator[None]:
    """Fake tensors on a GPU, and as many ranks as there should be."""
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    clear_caches()
    with FakeTensorMode():
        yield
    clear_caches()
    dist.destroy_process_group()


def clear_caches() -> None:
    """Forget what our functions keep for a device: no fake may be left, or be found."""
    caches = [each for each in gc.get_objects() if type(each) is functools._lru_cache_wrapper]
    for cached in caches:
        if cached.__module__.startswith("smdt"):
            cached.cache_clear()


def config_of(stage: str, **sections: object) -> Config:
    content = {"stage": stage, "run": {"name": "t", "out": "none"}, "data": {"shards": "none"}}
    return SCHEMAS[stage].model_validate(content | SECTIONS[stage] | sections)


def fake_stage(config: Config) -> Stage:
    with GPU:
        return make_stage(config)


def fake_batch(config: Config, same_size: bool) -> Batch:
    """Images as DALI leaves them on a GPU; what the index says stays where it is."""
    rows = [48] * SHARE if same_size else [48 + 16 * row for row in range(SHARE)]

    def images(channels: int, square: bool) -> torch.Tensor | list[torch.Tensor]:
        sizes = [(height, height if square else 2 * height) for height in rows]
        made = [torch.empty(*size, channels, dtype=torch.uint8, device=GPU) for size in sizes]
        return torch.stack(made) if same_size else made

    views = {"ground": (3, False), "aligned": (3, False), "aerial": (3, True), "seg": (1, False)}
    return Batch(
        epoch=0,
        index=0,
        sample_ids=np.arange(SHARE),
        shown=np.arange(SHARE)[:, None],
        images={view: images(*views[view]) for view in training_views(config)},
        heading_deg=np.zeros(SHARE),
        extent_m=np.full(SHARE, 100.0),
        elevation_min=np.full(SHARE, -30.0),
        elevation_max=np.full(SHARE, 30.0),
        state=DataState("", 0, 0, 0),
    )


@pytest.mark.parametrize("aerial", ["raw", "mixed", "aligned"])
@pytest.mark.parametrize("same_size", [True, False])
def test_towers(on_gpu, same_size, aerial):
    config = config_of("retrieval", aerial=aerial)
    stage = fake_stage(config)
    inputs = stage.augmented(fake_batch(config, same_size), slice(1, 3), seed=0)
    assert all(tensor.device == GPU for tensor in (*inputs, *stage.towers(*inputs)))


@pytest.mark.parametrize("loss", [SoftMarginConfig(), InfoNceConfig(name="info_nce")])
def test_the_loss_of_towers(on_gpu, loss):
    config = config_of("retrieval").model_copy(update={"loss": loss})
    stage = fake_stage(config)
    inputs = stage.images(fake_batch(config, same_size=True), slice(1, 3))
    ground, aerial, *scalars = stage.towers(*inputs)
    assert all(tensor.device == GPU for tensor in (ground, aerial, *scalars))
    rows = slice(0, 1)
    wrong = negative_mask(torch.arange(2, device=GPU).unsqueeze(1), rows)
    share = local_contrastive_loss(config.loss, (ground, aerial), rows, wrong, scalars)
    assert share.device == GPU


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("name", ["segmentation", "alignment"])
def test_a_step(on_gpu, name, same_size):
    config = config_of(name)
    stage = fake_stage(config)
    engines = {name: Forward(module) for name, module in stage.modules().items()}
    context = StepContext(0, seed=0, rank=0, world_size=RANKS, chunks=2, device=GPU)
    losses = stage.step(engines, fake_batch(config, same_size), context)
    assert all(loss.device == GPU for loss in losses.values())


def test_fakes_refuse_to_mix(on_gpu):
    """What the tests above rely on."""
    with pytest.raises(RuntimeError, match=r"cuda:0.*cpu"):
        torch.empty(2, device=GPU) + torch.empty(2)

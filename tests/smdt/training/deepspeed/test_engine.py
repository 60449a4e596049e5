import importlib

import pytest
import torch
import torch.distributed as dist

from data_shards.base.errors import InputError
from smdt.training.deepspeed.engine import Engine, init_distributed
from smdt.training.deepspeed.optimizer import OptimizerConfig
from smdt.training.deepspeed.settings import deepspeed_settings

ASKED = {"global_batch": 32, "world_size": 4, "precision": "bf16", "gradient_clipping": 1.0}


def test_every_auto_is_filled_and_the_rest_is_kept():
    user = {
        "train_batch_size": "auto",
        "bf16": {"enabled": "auto", "immediate_grad_update": True},
        "zero_optimization": {"stage": 3},
    }
    settings = deepspeed_settings(user, **ASKED)
    assert settings["train_batch_size"] == 32
    assert settings["train_micro_batch_size_per_gpu"] == 8
    assert settings["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert settings["fp16"] == {"enabled": False}
    assert settings["zero_optimization"] == {"stage": 3}


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ({"train_batch_size": 64}, "train_batch_size"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"gradient_clipping": 5.0}, "gradient_clipping"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
    ],
)
def test_two_files_that_disagree_are_refused(user, key):
    with pytest.raises(InputError, match=key):
        deepspeed_settings(user, **ASKED)


@pytest.mark.parametrize(
    "user", [{"checkpoint": {"writer": {"decoupled": True}}}, {"datastates_ckpt": {}}]
)
def test_writers_that_go_on_behind_a_checkpoint_are_refused(user):
    with pytest.raises(InputError, match="remove them"):
        deepspeed_settings(user, **ASKED)
    deepspeed_settings({"checkpoint": {"use_node_local_storage": False}}, **ASKED)


@pytest.mark.parametrize("user", [{}, {"zero_optimization": {"stage": 0}}])
def test_fp16_without_zero_is_refused(user):
    with pytest.raises(InputError, match=r"zero_optimization\.stage to 1, 2 or 3"):
        deepspeed_settings(user, **{**ASKED, "precision": "fp16"})
    deepspeed_settings(user, **ASKED)


@pytest.mark.slow  # deepspeed takes seconds to import
def test_fp16_where_nothing_computes_in_it_is_refused_before_anything_starts(monkeypatch):
    from deepspeed.accelerator import get_accelerator

    # Some CPUs (AVX512-FP16) do compute in it.
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    user = {"zero_optimization": {"stage": 2}}
    settings = deepspeed_settings(user, **{**ASKED, "precision": "fp16"})
    with pytest.raises(InputError, match="precision: fp16 needs a GPU"):
        Engine("towers", torch.nn.Linear(2, 2), OptimizerConfig(), settings)


def test_ranks_on_gpus_meet_over_nccl_and_exchange_what_stays_on_the_cpu(monkeypatch):
    importlib.import_module("deepspeed.ops.op_builder.all_ops")  # which asks the real accelerator
    asked = {}
    monkeypatch.setattr("deepspeed.init_distributed", lambda **options: asked.update(options))
    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", FakeGpus)
    monkeypatch.setattr(dist, "new_group", dist.new_group)  # which is wrapped
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert init_distributed(60.0) == torch.device("cuda:1")
    backends = dist.distributed_c10d.BackendConfig(asked["dist_backend"])
    assert backends.get_device_backend_map() == {"cpu": "gloo", "cuda": "nccl"}


class FakeGpus:
    """What DeepSpeed says of a machine with GPUs."""

    def device_name(self, index: int | None = None) -> str:
        return "cuda" if index is None else f"cuda:{index}"

    def set_device(self, index: int) -> None:
        assert index == 1

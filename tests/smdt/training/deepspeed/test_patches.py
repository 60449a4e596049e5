"""Each patch still finds in DeepSpeed and PyTorch what it changes, and changes it."""

import importlib
import inspect
import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from smdt.training.deepspeed import patches
from smdt.training.deepspeed.patches import flatten

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def group(monkeypatch, tmp_path):
    """A process group of this process alone."""
    monkeypatch.setattr(dist, "new_group", dist.new_group)  # so that it is put back
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def warnings_of(versions, monkeypatch, caplog):
    monkeypatch.setattr(patches, "version", versions)
    for _ in range(2):
        patches.warn_of_other_versions()
    patches.warn_of_other_versions.cache_clear()
    return [record.getMessage() for record in caplog.records]


def test_versions_that_the_patches_know_are_silent(monkeypatch, caplog):
    patches.warn_of_other_versions.cache_clear()
    assert warnings_of(patches.version, monkeypatch, caplog) == []


def test_another_version_is_warned_of_once(monkeypatch, caplog):
    patches.warn_of_other_versions.cache_clear()
    found = {"deepspeed": "0.20.1", "torch": "2.14.0+cpu"}
    (line,) = warnings_of(found.__getitem__, monkeypatch, caplog)
    assert "deepspeed 0.20.1" in line
    assert "0.19" in line


def test_the_shared_memory_kernel_is_not_built(monkeypatch):
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    backend = importlib.import_module("deepspeed.comm.torch")

    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    patches.skip_shared_memory_kernel()
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        monkeypatch.setattr(type(builder), "load", lambda self: pytest.fail("it is built"))
    assert backend.build_shm_op() is None


def test_groups_that_deepspeed_makes_have_the_timeout(group):
    from deepspeed.comm.torch import TorchBackend

    patches.limit_new_groups(timedelta(seconds=17))
    made = TorchBackend.new_group(object.__new__(TorchBackend), [0])
    backend = made._get_backend(torch.device("cpu"))
    assert backend.options._timeout == timedelta(seconds=17)


def test_every_collective_that_deepspeed_calls_is_wrapped():
    source = inspect.getsource(importlib.import_module("deepspeed.comm.torch"))
    called = set(re.findall(r"torch\.distributed\.(\w+)\(", source))
    collectives = {
        name
        for name in called
        if re.match(r"(all_|reduce|broadcast|barrier|_all_gather_base|_reduce_scatter_base)", name)
        and not name.endswith("coalesced")
    }
    assert collectives >= {"all_reduce", "broadcast", "barrier"}
    assert collectives - set(patches.COLLECTIVES) <= {"broadcast_object_list", "all_gather_object"}


def test_infinities_are_looked_for_where_the_patch_says():
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.utils import CheckOverflow
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert "self.overflow_checker = CheckOverflow(" in inspect.getsource(FP16_Optimizer)
    assert callable(CheckOverflow.check)
    for optimizer in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3):
        source = inspect.getsource(optimizer)
        assert callable(optimizer.check_overflow)
        assert "self.check_overflow(" in source
        assert "_global_grad_norm" in source


def test_zero_3_flattens_its_gradients_by_a_method_of_the_instance():
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    assert "self.flatten(self.averaged_gradients[sub_group_id])" in source
    assert "self.grad_partitions_flat_buffer" in source


def test_padding_stays_while_a_checkpoint_is_converted():
    from deepspeed.checkpoint.zero_checkpoint import ZeROCheckpoint

    strip = ZeROCheckpoint._strip_tensor_paddings
    assert "_strip_tensor_paddings(sd)" in inspect.getsource(ZeROCheckpoint.get_state_for_rank)
    with patches.padding_kept():
        assert ZeROCheckpoint._strip_tensor_paddings is not strip
    assert ZeROCheckpoint._strip_tensor_paddings is strip


def test_a_rank_without_values_gets_an_empty_part():
    class Parameter(torch.nn.Parameter):
        _hp_mapping = None

    class Optimizer:
        bit16_groups = ([Parameter(torch.ones(3)), Parameter(torch.ones(2))],)
        single_partition_of_fp32_groups = (torch.zeros(4),)

    patches.add_empty_fragments(Optimizer)
    first, second = Optimizer.bit16_groups[0]
    assert first._hp_mapping.get_hp_fragment_address().numel == 0
    assert second._hp_mapping is None


def pieces(buffer: torch.Tensor, *sizes: int) -> list[torch.Tensor]:
    return list(buffer.narrow(0, 3, sum(sizes)).split(sizes))


def test_neighbours_in_memory_are_one_without_a_copy():
    buffer = torch.randn(20)
    flat = flatten(pieces(buffer, 4, 1, 6))
    assert torch.equal(flat, buffer[3:14])
    flat.mul_(2)
    assert torch.equal(flat, buffer[3:14])
    whole = torch.randn(4, 5)
    assert flatten([whole]).data_ptr() == whole.data_ptr()
    assert torch.equal(flatten([whole]), whole.reshape(-1))


@pytest.mark.parametrize(
    "choose",
    [
        lambda a, b, c: [a, c],
        lambda a, b, c: [b, a],
        lambda a, b, c: [a, b.clone(), c],
        lambda a, b, c: [a, a],
        lambda a, b, c: [b[::2], c],
        lambda a, b, c: [b.view(2, 3).t(), c],
    ],
    ids=["gap", "order", "elsewhere", "twice", "strided", "transposed"],
)
def test_others_are_copied(choose):
    buffer = torch.randn(20)
    chosen = choose(*pieces(buffer, 4, 6, 2))
    flat = flatten(chosen)
    assert flat.tolist() == [value for each in chosen for value in each.reshape(-1).tolist()]
    before = buffer.clone()
    flat.zero_()
    assert torch.equal(buffer, before)

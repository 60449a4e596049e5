import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data_shards.base.errors import InputError
from smdt.models.batch_norm import SampleNorm, replace_batch_norms
from smdt.stages.weights import load_weights
from smdt.training.checkpoints import checkpoint
from smdt.training.deepspeed.engine import held_weights


class Network(nn.Module):
    """Parameters, one of them under two names, a buffer, and two that the module computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(16)
        self.angles = nn.Module()
        self.register_buffer("calls", torch.zeros(1))
        self.angles.register_buffer("periods", torch.arange(3.0), persistent=False)
        self.register_buffer("mask", None, persistent=False)


class OneNetwork:
    """As much of a stage as weights are about."""

    def __init__(self) -> None:
        self.network = Network()

    def modules(self):
        return {"network": self.network}


@pytest.fixture
def saved(tmp_path):
    """What a checkpoint holds of a network, and a function that writes other weights."""
    weights = {
        f"network.{name}": tensor
        for name, tensor in held_weights(OneNetwork().network, lambda parameter: parameter).items()
    }

    def write(more=(), without=()):
        held = {name: tensor for name, tensor in weights.items() if name not in without}
        save_file(held | dict(more), tmp_path / checkpoint.WEIGHTS)
        return tmp_path

    write()
    return weights, write


def test_a_checkpoint_holds_what_a_state_dict_does(saved):
    weights, _ = saved
    assert set(weights) == {f"network.{name}" for name in Network().state_dict()}


def test_what_was_saved_is_opened(saved):
    weights, write = saved
    opened = OneNetwork()
    load_weights(opened, write())
    state = opened.network.state_dict()
    assert all(torch.equal(weights[f"network.{name}"], state[name]) for name in state)


def test_buffers_that_a_network_computes_are_known_in_older_files(saved):
    _, write = saved
    older = {"network.angles.periods": torch.zeros(7), "network.mask": torch.ones(2, 2)}
    opened = OneNetwork()
    load_weights(opened, write(older))
    assert torch.equal(opened.network.angles.periods, torch.arange(3.0))
    assert opened.network.mask is None


def test_what_is_unknown_missing_or_of_another_shape_is_one_sentence(saved):
    weights, write = saved
    for folder, sentence in (
        (lambda: write({"network.other": torch.zeros(1)}), "have an unknown other$"),
        (lambda: write(without=["network.calls"]), "lack calls$"),
        (lambda: write(without=["network.calls", "network.norm.bias"]), "lack .* and 1 more$"),
        (lambda: write({"network.calls": torch.zeros(2)}), r"calls of shape \[2\], .* \[1\]"),
    ):
        with pytest.raises(InputError, match=f"weights of 'network' .*{sentence}"):
            load_weights(OneNetwork(), folder())
    assert load_file(write() / checkpoint.WEIGHTS).keys() == weights.keys()


def test_a_run_that_kept_a_batch_norm_is_opened_with_it(saved):
    weights, write = saved
    opened = OneNetwork()
    replace_batch_norms(opened.network, lambda _, norm: SampleNorm(norm))
    load_weights(opened, write())
    assert torch.equal(opened.network.norm.running_var, weights["network.norm.running_var"])

import pytest
import torch
from torch import nn

from data_shards.base.errors import InputError
from smdt.models.towers.hybrid import TinyConfig
from smdt.models.towers.two_tower import TwoTower
from smdt.training.deepspeed.parameter_groups import parameter_groups


def test_matrices_decay_and_vectors_do_not():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, plain = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed.parameters] == [(4, 3)]
    assert (decayed.weight_decay, plain.weight_decay) == (0.1, 0.0)
    assert len(plain.parameters) == 3
    assert decayed.rate_scale == plain.rate_scale == 1


def test_frozen_parameters_are_in_no_group():
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    (group,) = parameter_groups(module, 0.1)
    assert group.parameters == [module.weight]


def test_each_layer_learns_at_a_fraction_of_the_rate_of_the_one_above():
    model = TwoTower(TinyConfig(layers=2), (32, 64), (32, 64))
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {
        names[id(p)]: group.rate_scale
        for group in parameter_groups(model, 0.1, layer_decay=0.5)
        for p in group.parameters
    }
    assert set(scale) == set(names.values())
    for view in ("ground", "aerial"):
        assert scale[f"{view}.encoder.norm.weight"] == 1
        assert scale[f"{view}.encoder.layers.1.expand.weight"] == 0.5
        assert scale[f"{view}.encoder.layers.0.norm1.bias"] == 0.25
        assert scale[f"{view}.stem.0.weight"] == scale[f"{view}.encoder.positions"] == 0.125
    decays = {
        names[id(p)]: group.weight_decay
        for group in parameter_groups(model, 0.1, layer_decay=0.5)
        for p in group.parameters
    }
    assert decays["ground.encoder.layers.0.expand.weight"] == 0.1
    assert decays["ground.encoder.layers.0.expand.bias"] == 0


def test_a_module_that_knows_no_layers_cannot_decay_over_them():
    with pytest.raises(InputError, match=r"optimizer\.layer_decay is for the retrieval stage"):
        parameter_groups(nn.Linear(3, 4), 0.1, layer_decay=0.9)


def test_groups_hold_every_parameter_once_whatever_the_decay():
    model = TwoTower(TinyConfig(), (32, 64), (32, 64))
    for layer_decay in (1.0, 0.7):
        held = [p for g in parameter_groups(model, 0.1, layer_decay) for p in g.parameters]
        assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
        assert sum(torch.numel(p) for p in held) == sum(p.numel() for p in model.parameters())

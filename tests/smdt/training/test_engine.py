import pytest
import torch

from data_shards.errors import InputError
from smdt.training.engine import _parameter_groups, deepspeed_settings

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


def test_matrices_decay_and_vectors_do_not():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, plain = _parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(plain["params"]) == 3

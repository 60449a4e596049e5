"""What a run can go on from, by the files of a checkpoint alone."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from data_shards.base.errors import InputError
from smdt.data.order import DataState, OrderConfig
from smdt.stages import config as configuration
from smdt.stages.resume_checks import check_shapes, compare_with_checkpoint
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.run_environment import versions


@pytest.fixture
def config(tmp_path):
    """Read a run's configuration with some overrides."""
    file = tmp_path / "run.yaml"
    run = {"name": "test", "out": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump({"stage": "retrieval", "run": run, "data": {"shards": "a"}}))
    return lambda *overrides: configuration.load(file, overrides)


@pytest.fixture
def saved(tmp_path, config):
    """What a checkpoint of 3 steps says; an older one says less."""

    def save(*overrides, older=False):
        folder = tmp_path / "step-00000003"
        folder.mkdir()
        (folder / checkpoint.CONFIG).write_text(config(*overrides).to_yaml())
        progress = Progress(3, 96, 2, 2, DataState("hash", 0, 0, 96)).to_json()
        if older:
            for key in ("cuts", "left", "order"):
                del progress["data"][key]
        else:
            settings = {"zero_optimization": {"stage": 2}}
            (folder / checkpoint.DEEPSPEED).write_text(json.dumps(settings))
            (folder / checkpoint.ENVIRONMENT).write_text(json.dumps(versions()))
        (folder / checkpoint.PROGRESS).write_text(json.dumps(progress))
        return folder

    return save


ZERO2 = {"zero_optimization": {"stage": 2, "overlap_comm": True}}


def test_the_same_run_goes_on_without_a_word(config, saved):
    found = compare_with_checkpoint(config("data.shards=b", "batch.chunks=2"), ZERO2, saved(), 2)
    assert (found.lines, found.best_holds) == ((), True)


def test_what_takes_effect_is_said(config, saved):
    asked = config("batch.global=8", "evaluation.fov_deg=90", "init.weights=other")
    found = compare_with_checkpoint(asked, ZERO2 | {"fp16": {"loss_scale": 0}}, saved(), 4)
    assert not found.best_holds
    assert [line.split(" is ")[0] for line in found.lines[:4]] == [
        "batch.global",
        "init.weights",
        "evaluation.fov_deg",
        "fp16.loss_scale",
    ]
    assert found.lines[4] == "4 ranks resume where 2 stopped"


@pytest.mark.parametrize(
    ("overrides", "settings", "said"),
    [
        (["loss.name=info_nce"], ZERO2, "loss.name is info_nce, was soft_margin"),
        (["model.backbone=r50_vit_b16"], ZERO2, "model.backbone is r50_vit_b16, was tiny"),
        ([], {}, "zero_optimization.stage to 2"),
        (
            [],
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer.device is cpu, was null",
        ),
    ],
)
def test_what_cannot_be_is_refused(config, saved, overrides, settings, said):
    with pytest.raises(InputError, match=said) as refused:
        compare_with_checkpoint(config(*overrides), settings, saved(), 2)
    assert "\n" not in str(refused.value)


def test_an_older_checkpoint_is_compared_by_what_it_holds(config, saved):
    folder = saved("data.order.window=16", older=True)
    state = checkpoint.load_progress(folder).data
    assert (state.cuts, state.order) == (((32, 3),), OrderConfig(window=16))
    (order, recorded) = compare_with_checkpoint(config(), ZERO2, folder, 2).lines
    assert "data.order.window is null, was 16" in order
    assert "an older SMDT" in recorded
    with pytest.raises(InputError, match="precision"):
        compare_with_checkpoint(config("precision=fp32"), ZERO2, folder, 2)


def test_weights_of_another_shape_are_named_before_they_are_loaded(tmp_path):
    class OneModule:
        def modules(self):
            return {"net": nn.Linear(3, 2)}

    def weights(**more):
        tensors = {"net.weight": torch.zeros(2, 3), "net.bias": torch.zeros(2)} | more
        save_file(tensors, tmp_path / checkpoint.WEIGHTS)

    weights()
    check_shapes(OneModule(), tmp_path)
    weights(**{"net.weight": torch.zeros(2, 4)})
    with pytest.raises(InputError, match=r"holds \[2, 4\] as net.weight, and .* has \[2, 3\]"):
        check_shapes(OneModule(), tmp_path)
    weights(**{"net.scale": torch.zeros(1)})
    with pytest.raises(InputError, match=r"holds \[1\] as net.scale, and .* has nothing"):
        check_shapes(OneModule(), tmp_path)

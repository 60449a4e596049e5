import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from data_shards.base.errors import InputError
from smdt.models.towers.weights import resize_positions
from smdt.stages import config as configuration
from smdt.stages.base_config import Config
from smdt.stages.initial import initialise
from smdt.stages.registry import make_stage
from smdt.training.checkpoints.run_folder import RunFolder
from tests.checkpoints import save_untrained


@pytest.fixture
def write(tmp_path):
    """Write a run's YAML and load it."""

    def written(*overrides: str, **sections: object) -> Config:
        content = {
            "stage": "retrieval",
            "run": {"name": "test", "out": str(tmp_path / "run")},
            "data": {"shards": "nowhere"},
            "geometry": {"panorama_size": [32, 64]},
        }
        if sections.get("stage", "retrieval") == "retrieval":
            content["model"] = {"width": 16, "layers": 1, "hidden": 16}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content | sections))
        return configuration.load(path, overrides)

    return written


def test_nothing_is_loaded_unless_asked(write):
    config = write()
    assert initialise(make_stage(config), config) is None


def test_another_data_set_s_run_gives_its_weights_to_other_panoramas(write, tmp_path):
    trained = save_untrained(tmp_path / "cvusa", write(), seed=1)
    config = write("geometry.panorama_size=[48,96]", f"init.weights={tmp_path / 'cvusa'}")
    stage = make_stage(config)
    made = initialise(stage, config)
    assert {view: fit.fresh + fit.unused for view, fit in made.fits.items()} == {
        "ground": [],
        "aerial": [],
    }
    for name, tensor in stage.towers.state_dict().items():
        source = trained.towers.state_dict()[name]
        if name.endswith("positions"):
            source = resize_positions(source, (3, 6))
        assert torch.equal(tensor, source), name


def test_a_run_s_newest_checkpoint_is_meant_and_the_account_says_which(write, tmp_path):
    run = RunFolder(tmp_path / "earlier")
    run.create()
    for step in (1, 2):
        save_untrained(run.checkpoints / f"step-0000000{step}", write(), seed=step)
    config = write(f"init.weights={run.root}")
    made = initialise(make_stage(config), config)
    assert made.source.endswith("step-00000002")
    account = json.loads(json.dumps(made.to_json()))
    assert account["source"] == made.source
    assert "stem.0.weight" in account["ground"]["loaded"]
    first, _ = made.lines()
    assert first == f"{len(account['ground']['loaded'])} tensors of ground from {made.source}"


def test_the_account_names_what_was_not_loaded(write, tmp_path):
    save_untrained(tmp_path / "earlier", write("model.attention=self"), seed=1)
    config = write("model.pooling=gem", f"init.weights={tmp_path / 'earlier'}")
    made = initialise(make_stage(config), config)
    assert "random: encoder.layers.0.norm2.weight" in made.lines()[0]
    assert "encoder.pool.power" in made.lines()[0]
    narrow = write("model.layers=2", "model.shared=true", f"init.weights={tmp_path / 'earlier'}")
    (line,) = initialise(make_stage(narrow), narrow).lines()
    assert "in it and not used: two_tower.aerial." in line


def test_every_stage_goes_on_from_a_run_of_its_own(write, tmp_path):
    small = {"generator_width": 4, "discriminator_width": 4}
    alignment = {"stage": "alignment", "model": small}
    trained = save_untrained(tmp_path / "gan", write(**alignment), seed=1)
    config = write(f"init.weights={tmp_path / 'gan'}", **alignment)
    stage = make_stage(config)
    made = initialise(stage, config)
    assert set(made.fits) == set(stage.modules())
    for name, module in stage.modules().items():
        source = trained.modules()[name].state_dict()
        assert all(torch.equal(t, source[key]) for key, t in module.state_dict().items())


def test_weights_of_another_stage_or_kind_are_refused(write, tmp_path):
    save_untrained(tmp_path / "retrieval", write())
    gan = {"stage": "alignment", "model": {"generator_width": 4, "discriminator_width": 4}}
    config = write(f"init.weights={tmp_path / 'retrieval'}", **gan)
    with pytest.raises(InputError, match="is of stage 'retrieval', and this run of 'alignment'"):
        initialise(make_stage(config), config)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    config = write(f"init.weights={tmp_path / 'a.safetensors'}", **gan)
    with pytest.raises(
        InputError, match="is neither a run nor a checkpoint, which the stage 'alignment'"
    ):
        initialise(make_stage(config), config)
    config = write(f"init.weights={tmp_path / 'missing'}")
    with pytest.raises(InputError, match="missing: neither a folder nor an"):
        initialise(make_stage(config), config)


@pytest.mark.slow
def test_fixed_norms_need_weights_that_bring_statistics(write, tmp_path):
    with pytest.raises(InputError, match=r"model\.batch_norm: fixed keeps the statistics"):
        write(model={"backbone": "efficientnet_b0", "batch_norm": "fixed"})
    network = {"backbone": "efficientnet_b0", "shared": True}
    save_untrained(tmp_path / "groups", write(model=network))
    config = write(f"init.weights={tmp_path / 'groups'}", model={**network, "batch_norm": "fixed"})
    with pytest.raises(InputError, match=r"no statistics .*: set model\.batch_norm=group"):
        initialise(make_stage(config), config)

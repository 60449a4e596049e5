import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_shards.base.errors import InputError, run
from smdt.cli.app import app
from smdt.evaluation.outcomes import score_text
from smdt.inference.export import export_model
from smdt.stages import config as configuration
from smdt.stages.initial import initialise
from smdt.stages.registry import make_stage
from smdt.stages.trained import evaluate_trained, load_stage
from smdt.training.checkpoints.run_folder import RunFolder
from tests.checkpoints import save_untrained


@pytest.fixture
def trained(write_config, tmp_path):
    """A run with two checkpoints, and an evaluation of the second."""
    config = configuration.load(write_config(tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    folder.create()
    for step in (1, 2):
        save_untrained(folder.checkpoints / f"step-{step:08d}", config, seed=step)
    scores = {"R@1": 0.25, "R@1%": 0.5}
    content = {"step": 2, "protocol": "pairs", "shards": "data/here", "scores": scores}
    folder.evaluation.write_text(json.dumps(content))
    return folder


def test_an_exported_model_is_a_checkpoint_and_weights_to_start_from(trained, world, tmp_path):
    card = export_model(trained.root, tmp_path / "model")
    names = {path.name for path in card.parent.iterdir()}
    assert names == {"README.md", "config.yaml", "files.json", "weights.safetensors"}
    newest = trained.checkpoints / "step-00000002"
    source, copy = (load_file(path / "weights.safetensors") for path in (newest, card.parent))
    assert source.keys() == copy.keys()
    assert all(torch.equal(source[name], copy[name]) for name in source)
    ours, theirs = (evaluate_trained(path, str(world), "val", 0) for path in (newest, card.parent))
    assert ours.scores == theirs.scores
    _, stage = load_stage(card.parent)
    config = configuration.load(card.parent / "config.yaml", [f"init.weights={card.parent}"])
    started = make_stage(config)
    initialise(started, config)
    expected = stage.towers.state_dict()
    assert all(torch.equal(t, expected[k]) for k, t in started.towers.state_dict().items())


def test_the_card_says_what_the_model_is(trained, tmp_path):
    text = export_model(trained.root, tmp_path / "model").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["cross-view-geo-localization", "retrieval"]
    count = sum(t.numel() for t in load_file(tmp_path / "model" / "weights.safetensors").values())
    for line in (
        "# model",
        "| backbone | tiny |",
        f"| parameters | two_tower {count:,} |",
        "| ground image | 32x128 |",
        "| aerial image | 32x128, mixed |",
        "| pairs, data/here | |",
        "| R@1 | 25.0",
        "smdt embed model --shards DATA",
    ):
        assert line in body


def test_scores_of_other_weights_are_not_in_the_card(trained, tmp_path):
    first = trained.checkpoints / "step-00000001"
    assert "R@1" not in export_model(first, tmp_path / "first").read_text()


def test_scores_that_smdt_evaluate_wrote_are_in_the_card(trained, world, tmp_path):
    files = ["--json", str(trained.evaluation)]
    with pytest.raises(SystemExit) as ended:
        run(app, ["evaluate", str(trained.root), "--shards", str(world), "--split", "val", *files])
    assert not ended.value.code
    measured = json.loads(trained.evaluation.read_text())["scores"]["R@1"]
    text = export_model(trained.root, tmp_path / "model").read_text()
    assert f"| R@1 | {score_text('R@1', measured)} |" in text


def test_the_card_says_whose_aligned_images_the_towers_know(alignment, write_config, tmp_path):
    section = {"checkpoint": str(alignment.folder), "sha256": "0" * 64}
    path = write_config(tmp_path / "run", aerial="aligned", alignment=section)
    save_untrained(tmp_path / "trained", configuration.load(path))
    text = export_model(tmp_path / "trained", tmp_path / "model").read_text()
    assert f"| aligned by | weights with SHA-256 {'0' * 64} |" in text
    assert "smdt embed model --shards DATA --out GALLERY --alignment ALIGNMENT\n" in text


def test_every_stage_has_a_card(alignment, tmp_path):
    text = export_model(alignment.folder, tmp_path / "gan").read_text()
    assert "smdt align --shards DATA --out NEW --checkpoint gan" in text


def test_a_folder_of_the_users_stays(trained, tmp_path):
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "notes.txt").touch()
    export_model(trained.root, tmp_path / "model")
    assert (tmp_path / "model.tmp" / "notes.txt").exists()
    assert list(tmp_path.glob(".model*")) == []
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="exists: name a new folder"):
        export_model(trained.root, tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        export_model(trained.root, tmp_path / "file" / "model")


def test_nothing_is_overwritten(trained, tmp_path, capsys):
    with pytest.raises(InputError, match="exists: name a new folder"):
        export_model(trained.root, trained.root)
    with pytest.raises(SystemExit) as ended:
        run(app, ["export", str(trained.root), "--out", str(tmp_path / "model")])
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == str(tmp_path / "model" / "README.md")

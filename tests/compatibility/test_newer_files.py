"""What this version says of files that a newer one wrote: a sentence with the file in it."""

import json

import pytest
import yaml

from data_shards.base.errors import InputError
from data_shards.build.dataset import plan_build
from data_shards.format import layout, manifest
from data_shards.format.plan import BuildOptions, BuildPlan
from data_shards.world.source import WorldSource
from smdt.inference import gallery
from smdt.stages.config import load
from smdt.stages.resume_checks import compare_with_checkpoint
from smdt.training.checkpoints import checkpoint


def refused(read) -> str:
    with pytest.raises(InputError) as refusal:
        read()
    return str(refusal.value)


def test_a_newer_data_set(tmp_path):
    path = tmp_path / layout.MANIFEST
    newer = manifest.FORMAT_VERSION + 1
    path.write_text(json.dumps({"format_version": newer, "weights_of_cities": {}}))
    assert refused(lambda: manifest.load(tmp_path)) == (
        f"{path} has format version {newer}, this code reads up to {newer - 1}: update smdt."
    )


def test_a_build_that_a_newer_version_began(tmp_path):
    path = tmp_path / layout.PLAN
    plan = plan_build(WorldSource(0, 1, 1), BuildOptions()).model_dump(mode="json")
    plan["options"]["weights_of_cities"] = {}
    path.write_text(json.dumps(plan))
    assert refused(lambda: BuildPlan.load(tmp_path)) == (
        f"{path} has the key options.weights_of_cities, which this version does not know: update "
        "smdt, or name another --out."
    )


def test_a_newer_gallery(tmp_path):
    path = tmp_path / gallery.DESCRIPTION
    newer = gallery.FORMAT + 1
    path.write_text(json.dumps({"format": newer, "headings": []}))
    assert refused(lambda: gallery.Gallery.open(tmp_path)).startswith(
        f"{path} has format {newer}, and this version reads {newer - 1}: use a newer smdt"
    )


@pytest.fixture
def saved(tmp_path):
    """A checkpoint's folder with its configuration and progress; no weights."""
    config = tmp_path / "retrieval.yaml"
    run = {"name": "a", "out": "a"}
    content = {"stage": "retrieval", "run": run, "data": {"shards": "b"}, "batch": {"global": 8}}
    config.write_text(yaml.safe_dump(content))
    (tmp_path / checkpoint.CONFIG).write_text(load(config).to_yaml())
    data = {"manifest_hash": "", "seed": 0, "epoch": 0, "consumed": 8, "table_hash": ""}
    progress = {"step": 1, "samples": 8, "world_size": 1, "zero_stage": 0, "data": data}
    (tmp_path / checkpoint.PROGRESS).write_text(json.dumps({**progress, "best": None}))
    return tmp_path


def test_a_newer_checkpoint(saved):
    path = saved / checkpoint.PROGRESS
    path.write_text(json.dumps({"format": checkpoint.FORMAT + 1, "steps_of_engines": {}}))
    assert refused(lambda: checkpoint.load_progress(saved)) == (
        f"{path} has format {checkpoint.FORMAT + 1}, and this version reads {checkpoint.FORMAT}: "
        "update smdt"
    )


def test_a_checkpoint_with_a_key_that_this_version_does_not_know(saved):
    config = load(saved / checkpoint.CONFIG)
    compare_with_checkpoint(config, {}, saved, 1)
    content = yaml.safe_load((saved / checkpoint.CONFIG).read_text())
    content["data"]["weight_of_cities"] = 2
    (saved / checkpoint.CONFIG).write_text(yaml.safe_dump(content))
    assert refused(lambda: compare_with_checkpoint(config, {}, saved, 1)).startswith(
        f"data.weight_of_cities is null, was 2 in the checkpoint {saved}, which cannot resume with"
    )
    assert refused(lambda: load(saved / checkpoint.CONFIG)).startswith(
        f"configuration {saved / checkpoint.CONFIG}: unknown key 'data.weight_of_cities'"
    )


def test_a_checkpoint_that_lacks_what_this_version_needs(saved):
    path = saved / checkpoint.PROGRESS
    content = json.loads(path.read_text())
    content["place"] = content.pop("data")
    path.write_text(json.dumps(content))
    said = refused(lambda: checkpoint.load_progress(saved))
    assert said == (
        f"{path} does not say 'data': another version of smdt wrote it; resume with that one, or "
        "start a new run"
    )

"""What users have of an older version still opens, still scores the same, and still goes on.

`make_fixtures.py` made `files-*` with the commands of that version.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from data_shards.cli import app as data_shards
from data_shards.format import manifest
from smdt.cli.app import app as smdt
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder
from tests.compatibility.make_fixtures import END, SAVED, STAGES, WORLD
from tests.distributed.runs import files_of

TOLERANCE = {"retrieval": 5e-5, "alignment": 1.2e-3, "segmentation": 5e-5}
"""Largest difference of a weight. Without AVX it is 3e-8, 4.5e-4 and 7e-9 on ZeRO 1 or 2; an order
moved by one batch or Adam's moments lost make at least 1.6e-3, 3.2e-3 and 5e-4."""
VERSIONS = sorted(Path(__file__).parent.glob("files-*"))
assert VERSIONS, "git has them"


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name, scope="module")
def version(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def shards(version, tmp_path_factory) -> Path:
    return unpacked(version, "shards", tmp_path_factory.mktemp("old")) / "shards"


@pytest.fixture(scope="module")
def runs(version, tmp_path_factory) -> Path:
    """A folder with every run of the version, each beside the weights that it ended with."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        unpacked(version, stage, folder)
    return folder


def unpacked(version: Path, name: str, folder: Path) -> Path:
    with tarfile.open(version / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def invoke(app, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def scores_of(file: Path) -> dict[str, float]:
    return json.loads(file.read_text())["scores"]


@pytest.mark.slow
def test_an_old_data_set_is_whole_and_today_s_build_has_its_bytes(shards, tmp_path):
    invoke(data_shards, "verify", shards, "--workers", "1")
    invoke(data_shards, *WORLD, "--out", tmp_path / "new", "--workers", "1")
    assert manifest.load(shards) == manifest.load(tmp_path / "new")
    before, now = files_of(shards), files_of(tmp_path / "new")
    assert before.keys() == now.keys()
    assert [name for name in before if before[name] != now[name]] == []


@pytest.mark.slow
def test_an_old_gallery_finds_the_same_places_with_the_same_scores(version, runs, tmp_path):
    gallery = unpacked(version, "gallery", tmp_path) / "gallery"
    where = ("--gallery", gallery, "--checkpoint", runs / "retrieval-zero2", "--heading", 0)
    invoke(smdt, "locate", version / "photo.jpg", *where, "--json", tmp_path / "now.json")
    before = json.loads((version / "located.json").read_text())["places"]
    now = json.loads((tmp_path / "now.json").read_text())["places"]
    assert [each["source_id"] for each in now] == [each["source_id"] for each in before]
    for ours, theirs in zip(now, before, strict=True):
        assert ours.keys() >= theirs.keys()
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert (ours["lat"], ours["lon"]) == (theirs["lat"], theirs["lon"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_an_old_run_is_evaluated_reported_and_exported(stage, version, runs, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / f"{stage}-zero2", run)
    invoke(smdt, "evaluate", run, "--shards", shards, "--json", tmp_path / "now.json")
    expected = scores_of(version / f"{stage}.json")
    assert scores_of(tmp_path / "now.json") == pytest.approx(expected, abs=1e-3)
    invoke(smdt, "report", run)
    assert f"{stage}-zero2" in RunFolder(run).report.read_text()
    invoke(smdt, "checkpoint", "verify", run)
    exported = tmp_path / "exported"
    invoke(smdt, "export", run, "--out", exported)
    saved = checkpoint.folder_of(RunFolder(run).checkpoints, SAVED)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        assert (exported / name).read_bytes() == (saved / name).read_bytes()


RUNS = [
    pytest.param(stage, zero, marks=() if (stage, zero) == ("retrieval", 2) else pytest.mark.full)
    for stage in STAGES
    for zero in range(4)
]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stage", "zero"), RUNS)
def test_an_old_run_goes_on_to_the_same_weights(stage, zero, runs, shards, train_to_end, tmp_path):
    name = f"{stage}-zero{zero}"
    run = RunFolder(tmp_path / name)
    shutil.copytree(runs / name, run.root)
    assert run.read_state()["status"] == "running"
    train_to_end(run.config, f"run.out={run.root}", f"data.shards={shards}", zero=zero)
    records = [record for record in run.read_metrics() if "losses" in record]
    assert [record["step"] for record in records] == list(range(1, END + 1))
    folder = checkpoint.folder_of(run.checkpoints, END)
    assert farthest(folder / checkpoint.WEIGHTS, runs / f"{name}.safetensors") < TOLERANCE[stage]


def farthest(ours: Path, theirs: Path) -> float:
    """The largest difference of a weight between two files that hold the same tensors."""
    now, before = load_file(ours), load_file(theirs)
    assert now.keys() == before.keys()
    return max(float(torch.dist(now[name], before[name], p=torch.inf)) for name in now)

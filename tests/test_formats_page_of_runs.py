"""What docs/formats.md says of runs and models, compared with the code and with real ones."""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from launcher import requeue
from launcher.hosts.probe import token_file
from launcher.run import supervisor
from smdt.data import neighbours
from smdt.data.order import DataState
from smdt.data.quarantine import QuarantineLine
from smdt.data.split import Split
from smdt.inference import embed, gallery
from smdt.inference.export import export_model
from smdt.models.towers.weights import LoadReport
from smdt.stages import config as configuration
from smdt.stages.alignment import stage as alignment
from smdt.stages.retrieval import stage as retrieval
from smdt.stages.segmentation import stage as segmentation
from smdt.telemetry.metrics import DAMAGE_REASONS
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress
from smdt.training.checkpoints.run_environment import environment
from smdt.training.checkpoints.run_folder import Event, RunFolder, Status
from smdt.training.loop.step_recorder import StepRecord
from smdt.training.ranks.lease import LeaseRecord
from tests.checkpoints import save_untrained
from tests.formats_page import SOURCES, calls, keys, names_of, section, tables, words


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("formats") / "world"
    build(WorldSource(0, 4, 2, "easy", (32, 128), 64), root, BuildOptions(), workers=1)
    return root


def test_names_in_the_run_folder(tmp_path):
    assert set(keys("Run folder")) == {p.name for p in list(vars(RunFolder("run")).values())[1:]}
    others = keys("Run folder", 1)
    ours = [requeue.FILE, supervisor.ENVIRONMENT, supervisor.MASKS]
    assert others[:3] == ours
    assert token_file(tmp_path, "0").match(others[3])
    logs = {name.removeprefix("logs/").replace("<job>", "%j") for name in others[4:]}
    strings = "\n".join(re.findall(r'"[^"\n]*"', "".join(SOURCES)))
    written = re.findall(r"[\w{}:%-]+\.log\b", strings)
    assert logs == {re.sub(r"{\w+:0(\d)d}", r"<\1 digits>", name) for name in written}


def test_state_and_history(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_state("running", 0)
    assert list(folder.read_state()) == keys("state.json")
    assert words(tables("state.json")[0][0][1]) == [*get_args(Status)]
    shown = {words(event)[0]: set(words(names)) for event, names in tables("history.jsonl")[0]}
    assert shown.keys() == {*get_args(Event)}
    for call in calls("note"):
        given = {word.arg for word in call.keywords}
        constant = isinstance(call.args[0], ast.Constant)
        for event in [call.args[0].value] if constant else ["done", "preempted"]:
            assert shown.pop(event) == given
    assert not shown, "nothing notes these events"


def test_lines_of_metrics_and_quarantine():
    step = ["time", *names_of(StepRecord), "losses", "lost_keys"]
    assert keys("metrics.jsonl") == step
    assert keys("quarantine.jsonl") == names_of(QuarantineLine)
    (reason,) = (row for row in tables("quarantine.jsonl")[0] if row[0] == "`reason`")
    assert words(reason[1]) == [*DAMAGE_REASONS]


def test_evaluation_environment_and_lease():
    always = {"split", "shards", "missing"}
    shown = {words(row[0])[0]: {*words(row[1])} | always for row in tables("evaluation.json")[0]}
    for module in (retrieval, alignment, segmentation):
        tree = ast.parse(Path(module.__file__).read_text())
        (details,) = (
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "details"
        )
        stage = module.__name__.split(".")[2]
        assert {key.value for key in details.keys} == shown[stage], stage
    assert keys("environment.json") == [*environment(["host"], "cpu")]
    assert keys("init.json") == names_of(LoadReport)
    assert keys("Lease and stop") == names_of(LeaseRecord)


def test_files_of_a_checkpoint():
    named = [getattr(checkpoint, n) for n in ("WEIGHTS", "PROGRESS", "CONFIG", "DEEPSPEED")]
    named += [checkpoint.ENVIRONMENT, checkpoint.FILES, "<engine>/"]
    assert keys("Checkpoint") == named
    shown = {words(row[0])[0]: words(row[1]) for row in tables("Checkpoint")[1]}
    assert shown == {
        "retrieval": [retrieval.ENGINE],
        "alignment": [alignment.GENERATORS, alignment.DISCRIMINATORS],
        "segmentation": [segmentation.ENGINE],
    }
    assert f"`checkpoints/{checkpoint.LATEST}`" in section("Checkpoint")


def test_progress_json():
    state = DataState("0" * 64, 0, 0, 0)
    content = Progress(1, 2, 1, 0, state).to_json()
    assert [*content] == keys("progress.json")
    assert [*content["data"]] == keys("progress.json", 1)
    for name, meaning in tables("progress.json")[1]:
        less = {k: v for k, v in content["data"].items() if k != name.strip("`")}
        if meaning.endswith("; optional"):
            assert DataState.from_json(less) == state
        else:
            with pytest.raises(KeyError):
                DataState.from_json(less)


def test_a_neighbour_table(tmp_path):
    rows = np.array([[1, -1], [0, -1], [1, 0]], np.int32)
    name = neighbours.save(tmp_path, [rows], rows.shape)
    assert [f.name for f in tmp_path.iterdir()] == [f"{name}.npy"]
    data = (tmp_path / f"{name}.npy").read_bytes()
    assert hashlib.sha256(data).hexdigest() == name
    assert data[:8] == b"\x93NUMPY\x01\x00"
    found = np.load(tmp_path / f"{name}.npy")
    assert (found.dtype.str, found.flags.c_contiguous, found.tolist()) == (
        "<i4",
        True,
        rows.tolist(),
    )


def test_a_gallery(data_set, tmp_path):
    split = Split.open(str(data_set), "train")
    gallery.GalleryManifest("c", "0" * 64, "s", "train", "1" * 64).claim(tmp_path)
    gallery.write_gallery(tmp_path, torch.eye(3), gallery.places_of(split, np.arange(3)))
    whole = [gallery.DESCRIPTION, gallery.PLACES, gallery.DESCRIPTORS]
    assert keys("Gallery") == [*whole, f"{embed.PARTS}/"]
    assert {file.name for file in tmp_path.iterdir()} == {*whole}
    assert [*json.loads((tmp_path / gallery.DESCRIPTION).read_text())] == keys("Gallery", 1)
    columns = [(row[0].strip("`"), row[1]) for row in tables("Gallery")[2]]
    schema = pq.read_schema(tmp_path / gallery.PLACES)
    assert columns == [(field.name, str(field.type)) for field in schema]
    with safe_open(tmp_path / gallery.DESCRIPTORS, framework="np") as file:
        assert words(tables("Gallery")[0][2][1])[0] == "descriptors"
        assert [*file.keys()] == ["descriptors"]


def test_an_exported_model(data_set, tmp_path):
    content = {
        "stage": "retrieval",
        "run": {"name": "test", "out": str(tmp_path / "run")},
        "data": {"shards": str(data_set)},
        "geometry": {"panorama_size": [32, 128]},
        "model": {"width": 64, "layers": 1},
    }
    config = configuration.SCHEMAS["retrieval"].model_validate(content)
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    save_untrained(folder, config)
    export_model(folder, tmp_path / "model")
    there = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert there.keys() == {*keys("Exported model")}
    listed = json.loads(there.pop(checkpoint.FILES))
    assert listed == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in there.items()
    }
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        assert there[name] == (folder / name).read_bytes()


@pytest.mark.distributed
def test_every_file_of_a_run_is_on_the_page(write_config, train_to_end, tmp_path):
    out = tmp_path / "run"
    sections = {"schedule": {"length": "2 steps", "warmup_steps": 1}}
    train_to_end(write_config(out, **sections), ranks=1)
    folders = {"checkpoints", "logs", "neighbours", "targets"}
    assert {file.name for file in out.iterdir()} <= {*keys("Run folder")}
    assert {file.name for file in out.iterdir() if file.is_dir()} == folders
    assert {file.name for file in (out / "logs").iterdir()} == {"rank-00000.log"}
    (saved,) = checkpoint.published(out / "checkpoints")
    assert {file.name for file in saved.iterdir()} == {
        *(name.rstrip("/").replace("<engine>", "two_tower") for name in keys("Checkpoint")),
        *("zero_to_fp32.py", "zero_to_torch.py"),
    }
    forms = [word.replace("<R>", "0") for word in words(section("Checkpoint"))]
    assert {file.name for file in (saved / "two_tower").iterdir()} <= {*forms}
    with safe_open(saved / checkpoint.WEIGHTS, framework="np") as file:
        assert {name.partition(".")[0] for name in file.keys()} == {"two_tower"}  # noqa: SIM118
    step, evaluation = map(json.loads, (out / "metrics.jsonl").read_text().splitlines()[-2:])
    assert [*step] == [key for key in keys("metrics.jsonl") if key != "lost_keys"]
    assert [*evaluation] == ["time", "step", "scores"]
    (row,) = (row for row in tables("evaluation.json")[0] if words(row[0]) == ["retrieval"])
    content = json.loads((out / "evaluation.json").read_text())
    assert content.keys() == {"step", "scores", "split", "shards", "missing", *words(row[1])}

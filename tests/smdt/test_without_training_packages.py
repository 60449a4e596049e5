"""A model and its gallery are used where neither DALI nor DeepSpeed is installed."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from PIL import Image

from smdt.data.pipeline import DALI
from smdt.inference.embed import EmbedJob, embed, finish
from smdt.inference.locate import Locator, PhotoQuery, read_photo
from smdt.stages import config as configuration
from smdt.training.deepspeed.settings import DEEPSPEED
from tests.checkpoints import save_untrained
from tests.distributed.runs import ROOT
from tests.pictures import picture

COMMANDS = """
import contextlib, io, json, sys
from data_shards.base.errors import run
from smdt.cli.app import app

ended = []
for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            run(app, command)
    except SystemExit as error:
        ended.append((error.code or 0, said.getvalue()))
loaded = sorted({"deepspeed", "nvidia.dali", "scipy.spatial", "triton"} & sys.modules.keys())
print(json.dumps({"ended": ended, "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """What is installed here, but for DALI and DeepSpeed."""
    folder = tmp_path_factory.mktemp("packages")
    for installed in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if installed.name == "nvidia":
            (folder / "nvidia").mkdir()
            for part in installed.iterdir():
                if part.name != "dali":
                    (folder / "nvidia" / part.name).symlink_to(part)
        elif not installed.name.startswith(("deepspeed", "nvidia_dali")):
            (folder / installed.name).symlink_to(installed)
    return folder


@pytest.fixture
def smdt(packages):
    """Run commands of `smdt` in one process; return their exit codes and what stderr had."""

    def run(*commands: list[object]) -> list[tuple[int, str]]:
        words = json.dumps([[str(word) for word in command] for command in commands])
        done = subprocess.run(
            [sys.executable, "-S", "-c", COMMANDS, words],  # -S: without the environment's own
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{packages}"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["loaded"] == []
        return [(code, said) for code, said in found["ended"]]

    return run


@pytest.fixture
def trained(write_config, tmp_path) -> Path:
    save_untrained(tmp_path / "trained", configuration.load(write_config(tmp_path / "run")))
    return tmp_path / "trained"


def test_a_photo_is_located_by_an_exported_model(smdt, trained, world, tmp_path):
    gallery, model, photo = tmp_path / "gallery", tmp_path / "model", tmp_path / "photo.png"
    job = EmbedJob(trained, str(world), "val", gallery, batch=8, max_missing=0)
    embed(job, torch.device("cpu"), 0, 1, lambda samples: None)
    locator = Locator(finish(job))
    Image.fromarray(picture(0, 32, 128)).save(photo)
    expected = locator(read_photo(photo), PhotoQuery.of(360, 0, "panorama", 1), 24)

    where = ["--gallery", gallery, "--checkpoint", model, "--json", tmp_path / "places.json"]
    ended = smdt(
        ["--help"],
        ["export", trained, "--out", model],
        ["locate", photo, *where, "--heading", 0, "--top", 24],
        ["doctor", "--json", tmp_path / "doctor.json"],
    )
    assert ended == [(0, "")] * 4
    places = json.loads((tmp_path / "places.json").read_text())["places"]
    assert [each["score"] for each in places] == pytest.approx(
        [each.score for each in expected], abs=1e-5
    )
    cures = {
        each["subject"]: each["cure"]
        for each in json.loads((tmp_path / "doctor.json").read_text())
        if each["cure"]
    }
    assert {"deepspeed", "nvidia-dali-cuda130", "decoding"} <= cures.keys()
    assert f"pip install '{DEEPSPEED}'" in cures["deepspeed"]
    assert f"pip install '{DALI}'" in cures["nvidia-dali-cuda130"]


def test_what_needs_them_says_what_to_install_and_begins_nothing(
    smdt, trained, write_config, world, tmp_path
):
    data = [trained, "--shards", world]
    needs = [
        (DEEPSPEED, ["train", "--config", write_config(tmp_path / "run")]),
        (DALI, ["evaluate", *data, "--ranks", 2]),
        (DEEPSPEED, ["embed", *data, "--out", tmp_path / "gallery", "--ranks", 2]),
        (DALI, ["evaluate", *data]),
        (DALI, ["embed", *data, "--out", tmp_path / "gallery"]),
    ]
    before = sorted(tmp_path.rglob("*"))
    ended = smdt(*(command for _, command in needs))
    for (requirement, _), (code, said) in zip(needs, ended, strict=True):
        assert code == 2
        (sentence,) = said.splitlines()
        assert sentence.endswith(f"is not installed: pip install '{requirement}'.")
    assert sorted(tmp_path.rglob("*")) == before

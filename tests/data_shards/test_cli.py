import json

import pytest
from PIL import Image

from data_shards.base.errors import run
from data_shards.cli import app


@pytest.fixture
def shards(capsys):
    """Run a command: (exit code, stdout, last line of stderr)."""

    def command(*arguments):
        with pytest.raises(SystemExit) as stopped:
            run(app, [str(argument) for argument in arguments])
        output = capsys.readouterr()
        error = output.err.strip().splitlines()
        return stopped.value.code, output.out, error[-1] if error else ""

    return command


def test_build_verify_stats_finalize(shards, folder, tmp_path):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    build = ("build", "folder", "--root", folder, "--out", out, "--workers", 1)
    code, text, _ = shards(*build, "--samples-per-shard", 5, "--json", figures)
    assert code == 0
    assert "1 damaged_image" in text
    assert json.loads(figures.read_text())["splits"]["train"]["samples"] == 10
    assert shards("verify", out, "--workers", 1, "--json", figures)[0] == 0
    assert json.loads(figures.read_text()) == {"shards": 3, "samples": 10, "damages": []}
    sheet = tmp_path / "sheet.png"
    assert shards("stats", out, "--sheet", sheet, "--json", figures)[0] == 0
    assert json.loads(figures.read_text())["train"]["places"] == 10
    assert Image.open(sheet).format == "PNG"
    before = (out / "manifest.json").read_bytes()
    assert shards("finalize", out)[0] == 0
    assert (out / "manifest.json").read_bytes() == before
    code, _, error = shards(*build)
    assert code == 2
    assert "samples_per_shard 5, not 1000" in error


def test_how_images_are_encoded_is_on_record(shards, folder, tmp_path):
    out, manifest = tmp_path / "out", tmp_path / "manifest.json"
    options = ("--ground-size", "16x64", "--filter", "area", "--chroma", "4:4:4", "--quality", 80)
    build = ("build", "folder", "--root", folder, "--out", out, "--workers", 1)
    assert shards(*build, *options, "--json", manifest)[0] == 0
    plan = json.loads((out / "build.json").read_text())
    for record in (plan, json.loads(manifest.read_text())):
        assert (record["options"]["filter"], record["options"]["chroma"]) == ("area", "4:4:4")
        assert record["encoder"].endswith("area, quality 80, 4:4:4")
    code, _, error = shards(*build, *options[:2])
    assert code == 2
    assert "quality 80, not 90" in error


def test_verify_names_damage_and_exits_with_1(shards, folder, tmp_path):
    out = tmp_path / "out"
    shards("build", "folder", "--root", folder, "--out", out, "--workers", 1)
    tar = out / "train" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"lat":4.0', b'"lat":5.0'))
    code, text, _ = shards("verify", out, "--workers", 1, "--json", tmp_path / "d.json")
    assert code == 1
    assert "train-000000004" in "".join(text.split())
    (damage,) = json.loads((tmp_path / "d.json").read_text())["damages"]
    assert (damage["key"], damage["part"], damage["reason"]) == (
        "train-000000004",
        "meta",
        "checksum",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "cvusa", "--root", "nowhere", "--out", "out"], "is --root the folder of CVUSA"),
        (["build", "folder", "--root", "nowhere", "--out", "out"], "There is no folder nowhere"),
        (
            ["build", "tapes", "--root", ".", "--out", "out"],
            "is not one of 'cvusa', 'cvact', 'vigor'",
        ),
        (["build", "cvact", "--root", "nowhere", "--out", "out"], "is --root the folder of CVACT"),
        (["build", "vigor", "--root", "nowhere", "--out", "out"], "is --root the folder of VIGOR"),
        (["build", "cvusa", "--root", "r", "--out", "o", "--area", "same"], "--area is for vigor"),
        (
            ["build", "folder", "--root", "r", "--out", "o", "--ground-size", "9"],
            "'9' is not HEIGHT",
        ),
        (
            ["build", "folder", "--root", "r", "--out", "o", "--exclude", "l"],
            "--exclude is not for",
        ),
        (
            ["build", "folder", "--root", "r", "--out", "o", "--metrics-tls", "c.pem,k.pem"],
            "add --metrics-targets",
        ),
        (["verify", "nowhere"], "There is no folder nowhere"),
        (["stats", "nowhere"], "There is no folder nowhere"),
        (["finalize", "nowhere"], "nowhere holds no build"),
        (
            ["world", "--out", "o", "--train", "0", "--val", "1"],
            "'--train': Input should be greater",
        ),
        (
            ["world", "--out", "o", "--train", "1", "--val", "1", "--aerial-size", "2"],
            "aerial_size",
        ),
    ],
)
def test_what_is_wrong_with_the_input_is_one_sentence(
    shards, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _, error = shards(*arguments)
    assert code == 2
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_world_becomes_shards(shards, tmp_path):
    out = tmp_path / "world"
    sizes = ("--ground-size", "32x96", "--aerial-size", "48")
    make = ("world", "--out", out, "--train", 2, "--val", 1, "--workers", 1, *sizes)
    assert shards(*make, "--json", tmp_path / "m.json")[0] == 0
    splits = json.loads((tmp_path / "m.json").read_text())["splits"]
    assert {name: split["samples"] for name, split in splits.items()} == {"train": 2, "val": 1}
    assert shards("verify", out, "--workers", 1)[0] == 0

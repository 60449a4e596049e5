"""What a user gets wrong: one clear sentence on stderr, a non-zero exit, nothing started."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from data_shards.base.errors import run
from smdt.cli.app import app
from smdt.data.split import Split


@pytest.fixture
def copied(world, tmp_path) -> Path:
    """The small world, to be damaged."""
    return Path(shutil.copytree(world, tmp_path / "shards"))


@pytest.fixture
def config(copied, tmp_path) -> Path:
    content = {
        "stage": "retrieval",
        "run": {"name": "test", "out": str(tmp_path / "run")},
        "data": {"shards": str(copied), "max_quarantined": 2},
        "batch": {"global": 8},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def fails(capsys):
    """Run `smdt`, which must fail; return its exit code and its one line on stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run(app, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        (sentence,) = captured.err.strip().splitlines()
        assert "Traceback" not in captured.out
        return ended.value.code, sentence

    return call


def test_an_unknown_key_names_the_nearest(config, fails):
    code, sentence = fails("train", "--config", config, "optimizer.learning_rat=0.1")
    assert code == 2
    assert "'optimizer.learning_rat'" in sentence
    assert "'learning_rate'" in sentence


def test_a_value_out_of_range_names_its_key(config, fails):
    code, sentence = fails("train", "--config", config, "schedule.length=soon")
    assert code == 2
    assert "schedule.length" in sentence
    assert "15 epochs" in sentence


def test_a_missing_configuration_is_named(tmp_path, fails):
    code, sentence = fails("train", "--config", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml" in sentence


def test_a_batch_that_does_not_divide_gives_sizes_that_do(config, fails):
    code, sentence = fails("train", "--config", config, "--ranks", 3)
    assert code == 2
    assert "batch.global is 8" in sentence
    assert "6 or 9" in sentence


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_clipping"])
def test_a_deepspeed_file_that_is_no_json_is_named(config, fails, tmp_path, key):
    broken = tmp_path / "zero.json"
    broken.write_text(f'{{"{key}": ')
    code, sentence = fails("train", "--config", config, "--deepspeed_config", broken)
    assert code == 2
    assert "zero.json" in sentence


def test_a_folder_without_shards_is_named(config, fails, tmp_path):
    code, sentence = fails("train", "--config", config, f"data.shards={tmp_path / 'nowhere'}")
    assert code == 2
    assert "nowhere" in sentence


@pytest.mark.parametrize("section", ["data", "evaluation"])
def test_an_unknown_split_names_those_there_are(config, fails, section):
    code, sentence = fails("train", "--config", config, f"{section}.split=test")
    assert code == 2
    assert "train" in sentence
    assert "val" in sentence


def test_a_protocol_that_the_shards_cannot_serve_is_refused_before_the_first_step(config, fails):
    code, sentence = fails("train", "--config", config, "evaluation.protocol=vigor_same")
    assert code == 2
    assert "no split 'aerial'" in sentence


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_tar_is_named_by_training_and_by_verify(config, fails, copied, split):
    tar = Split.open(copied, split).tar(0)
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size // 3)
    code, sentence = fails("train", "--config", config)
    assert code == 1
    assert tar.name in sentence
    with pytest.raises(SystemExit) as ended:
        run(app, ["shards", "verify", str(copied)])
    assert ended.value.code == 1


def test_a_missing_index_part_is_named_by_verify(copied, capsys):
    part = Split.open(copied, "train").tar(0).with_suffix(".parquet")
    part.unlink()
    with pytest.raises(SystemExit) as ended:
        run(app, ["shards", "verify", str(copied)])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert part.stem in captured.out + captured.err


def test_what_was_never_trained_cannot_be_evaluated(fails, tmp_path, copied):
    code, sentence = fails("evaluate", tmp_path, "--shards", copied)
    assert code == 2
    assert str(tmp_path) in sentence


def test_the_doctor_finds_everything_here(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(app, ["doctor", "--json", str(tmp_path / "doctor.json")])
    assert ended.value.code == 0
    findings = json.loads((tmp_path / "doctor.json").read_text())
    assert {"Python", "torch", "deepspeed"} <= {finding["subject"] for finding in findings}
    assert "torch" in capsys.readouterr().out

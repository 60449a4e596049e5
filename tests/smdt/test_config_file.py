"""What a user types is what the run gets, wherever the schema wants a string."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from smdt.config_file import copy_packaged, find, packaged
from smdt.stages import config as configuration

MINIMAL = "stage: retrieval\nrun: {name: a, out: b}\ndata: {shards: c}\n"


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


NUMBERS_AND_WORDS = ["001", "1e3", "2024", "0x10", "1_000", "1.50", "null", "yes", "on", "no"]
DATES = ["2026-11-30", "2026-11-30.cvusa"]
PATHS = ["a=b", "[north]", "{a}", "{a: 1}", "${run.seed}", "\\${x}", "$HOME", "a,b", "a #b", "a: b"]
ODD = ["12:30:00", "[a", "{a", "*x", "&a b", "!x y", "|", "- a", "@x", "%a", " a ", "é ü", "~"]


@pytest.mark.parametrize("text", NUMBERS_AND_WORDS + DATES)
def test_a_string_is_the_text_on_the_command_line_and_in_a_file(minimal, text):
    assert configuration.load(minimal, [f"run.name={text}"]).run.name == text
    minimal.write_text(MINIMAL.replace("name: a", f"name: {text}"))
    assert configuration.load(minimal).run.name == text


@pytest.mark.parametrize("text", NUMBERS_AND_WORDS + DATES + PATHS + ODD)
def test_a_path_and_a_split_are_exactly_what_was_typed(minimal, text, tmp_path):
    overrides = [f"{key}={text}" for key in ("data.shards", "data.split", "run.out")]
    config = configuration.load(minimal, overrides)
    assert (config.data.shards, config.data.split, str(config.run.out)) == (text, text, text)
    saved = tmp_path / "saved.yaml"
    saved.write_text(config.to_yaml())
    assert configuration.load(saved) == config


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="'\""), min_size=1, max_size=20))
def test_any_text_is_what_was_typed(text):
    if text == "???":
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(MINIMAL)
        config = configuration.load(path, [f"data.shards={text}"])
        assert config.data.shards == text
        path.write_text(config.to_yaml(), newline="")
        assert configuration.load(path) == config


def test_quotes_of_yaml_still_quote(minimal):
    assert configuration.load(minimal, ["run.name='001'"]).run.name == "001"
    assert configuration.load(minimal, ['data.split="a b"']).data.split == "a b"


def test_a_weights_file_may_be_named_by_a_number_and_null_is_none(minimal):
    assert str(configuration.load(minimal, ["init.weights=2024"]).init.weights) == "2024"
    assert configuration.load(minimal, ["init.weights=null"]).init.weights is None


def test_one_value_stands_for_another_with_its_override_as_it_was_typed(minimal):
    minimal.write_text(MINIMAL.replace("out: b", "out: 'runs/${run.name}'"))
    assert str(configuration.load(minimal, ["run.name=001"]).run.out) == "runs/001"


def test_a_number_that_yaml_reads_as_another_is_the_one_that_was_typed(minimal):
    assert configuration.load(minimal, ["run.seed=010"]).run.seed == 10
    with pytest.raises(InputError, match=r"run\.seed"):
        configuration.load(minimal, ["run.seed=1:30"])
    minimal.write_text(MINIMAL.replace("out: b", "out: b, seed: 010"))
    assert configuration.load(minimal).run.seed == 10


@pytest.mark.parametrize("override", ["run.name", "=a", "", "run.name=???"])
def test_what_is_no_override_is_refused(minimal, override):
    with pytest.raises(InputError, match="override"):
        configuration.load(minimal, [override])


def test_bytes_that_are_no_text_are_refused_and_a_mark_is_skipped(minimal):
    minimal.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert configuration.load(minimal).run.name == "a"
    minimal.write_bytes(b"stage: \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8 text"):
        configuration.load(minimal)


def test_a_packaged_configuration_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configuration.load("cvusa/sample4geo").run.name == "cvusa-sample4geo"
    assert configuration.load_deepspeed(Path("zero3"))["zero_optimization"]["stage"] == 3
    assert {name.split("/")[0] for name in packaged() if "/" in name} == {
        *("cvusa", "cvact", "vigor", "world")
    }


def test_a_file_of_the_user_wins_over_a_packaged_one_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world" / "photos").mkdir(parents=True)
    (tmp_path / "world" / "retrieval").write_text(MINIMAL)
    assert configuration.load("world/retrieval").run.name == "a"
    assert configuration.load("world/photos").run.name == "world-photos"


def test_a_name_that_is_near_is_proposed():
    for named in ("cvusa/sample4go", "cvusa/sample4geo.yaml"):
        with pytest.raises(InputError, match=r"\(did you mean cvusa/sample4geo\?\)"):
            configuration.load(named)
    with pytest.raises(InputError, match=r"did you mean zero[0-3]\?"):
        configuration.load_deepspeed(Path("zero5"))


@pytest.mark.parametrize(
    ("text", "where"),
    [("a: 1\n\tb: 2\n", "line 2, column 1: "), ("a: [1\nb: 2\n", "line 2, column 2: ")],
)
def test_a_file_that_is_no_yaml_is_named_with_line_and_column(minimal, text, where):
    minimal.write_text(text)
    with pytest.raises(InputError, match=f"configuration {minimal}: {where}"):
        configuration.load(minimal)


@pytest.mark.parametrize("named", ["cvusa/sample4go", "../cvusa/smdt", "zero4", "cvusa"])
def test_what_is_neither_a_file_nor_a_name_is_refused(named):
    assert find(named) == Path(named)
    with pytest.raises(InputError, match="`smdt configs` lists"):
        configuration.load(named)
    with pytest.raises(InputError, match="`smdt configs` lists"):
        configuration.load_deepspeed(Path(named))


def test_a_copy_is_the_packaged_file_and_overwrites_nothing(tmp_path):
    copy_packaged("cvusa/smdt", tmp_path / "own" / "smdt.yaml")
    assert (tmp_path / "own" / "smdt.yaml").read_bytes() == packaged()["cvusa/smdt"].read_bytes()
    copy_packaged("monitoring", tmp_path / "monitoring")
    assert (tmp_path / "monitoring/grafana/dashboards/run.json").is_file()
    with pytest.raises(InputError, match="exists"):
        copy_packaged("monitoring", tmp_path / "own")
    with pytest.raises(InputError, match="choose another path"):
        copy_packaged("zero2", tmp_path / "own" / "smdt.yaml" / "zero2.json")
    with pytest.raises(InputError, match="no packaged configuration has this name: "):
        copy_packaged("../report", tmp_path / "report")

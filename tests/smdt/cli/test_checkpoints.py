import json
from pathlib import Path

import pytest

from data_shards.base.errors import run
from smdt.cli.app import app
from smdt.data.order import DataState
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.checkpoint import Progress


def publish(root: Path, step: int, best: tuple[float, int] | None) -> Path:
    """Publish a checkpoint of a run as training does, with little in it; return its folder."""
    folder = checkpoint.folder_of(root / "checkpoints", step)
    unpublished = folder.with_name("unpublished.tmp")
    unpublished.mkdir(parents=True)
    (unpublished / checkpoint.WEIGHTS).write_bytes(bytes(1000))
    progress = Progress(step, 8 * step, 2, 3, DataState("hash", 0, step // 10, 0), best)
    (unpublished / checkpoint.PROGRESS).write_text(json.dumps(progress.to_json()))
    checkpoint.publish(unpublished, folder)
    return folder


@pytest.fixture
def trained(tmp_path) -> Path:
    publish(tmp_path, 10, (0.5, 10))
    publish(tmp_path, 20, (0.5, 10))
    return tmp_path


def smdt(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run(app, [str(argument) for argument in arguments])
    return ended.value.code or 0


def test_a_run_and_a_checkpoint_are_listed(trained, tmp_path, capsys):
    table = tmp_path / "table.json"
    assert smdt("checkpoint", "list", trained, "--json", table) == 0
    newest, best = json.loads(table.read_text())
    assert (newest["step"], newest["epoch"], newest["best"]) == (20, 2, False)
    assert (best["step"], best["ranks"], best["zero_stage"], best["best"]) == (10, 2, 3, True)
    progress = Path(best["path"]) / checkpoint.PROGRESS
    assert best["bytes"] == 1000 + progress.stat().st_size
    shown = capsys.readouterr().out
    assert shown.index("step-00000020") < shown.index("step-00000010") < shown.index("best")

    assert smdt("checkpoint", "list", best["path"], "--json", table) == 0
    assert json.loads(table.read_text()) == [best]


def test_damage_is_named_and_fails(trained, tmp_path, capsys):
    assert smdt("checkpoint", "verify", trained) == 0
    assert capsys.readouterr().out.count(": whole") == 2
    newest, before = checkpoint.published(trained / "checkpoints")
    (newest / checkpoint.WEIGHTS).write_bytes(bytes(999) + b"1")
    assert smdt("checkpoint", "verify", trained, "--json", tmp_path / "faults.json") == 1
    fault = "weights.safetensors does not match its hash"
    assert f"{newest}: {fault}" in capsys.readouterr().out
    assert json.loads((tmp_path / "faults.json").read_text()) == {
        str(newest): fault,
        str(before): "",
    }
    assert smdt("checkpoint", "verify", before) == 0


@pytest.mark.parametrize("command", ["list", "verify"])
def test_what_is_neither_run_nor_checkpoint_is_refused(command, tmp_path, capsys):
    assert smdt("checkpoint", command, tmp_path) == 2
    assert "neither a checkpoint nor a run" in capsys.readouterr().err


def test_a_checkpoint_that_says_nothing_is_an_error(trained, capsys):
    newest, _ = checkpoint.published(trained / "checkpoints")
    (newest / checkpoint.PROGRESS).write_text("{")
    assert smdt("checkpoint", "list", trained) == 2
    assert "smdt checkpoint verify" in capsys.readouterr().err

"""Faults of data and storage under real ranks: nothing lost, all of it listed, a clear end."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_shards.base.store import location
from smdt.data.split import Split
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import ROOT, kill_ranks, ranks_of, wait_for
from tests.store import KEY_ID, SECRET

TOTAL = 24  # 4 epochs of 6 steps: batches of 10 pairs
DATA = {"decode_threads": 1, "read_threads": 1, "read_ahead": 1, "order": {"window": 16}}
SECTIONS = {
    "batch": {"global": 10},
    "schedule": {"length": "4 epochs", "warmup_steps": 4},
    "evaluation": {"every": "100 epochs", "batch": 8},
}


@pytest.fixture(scope="module")
def damaged(world, tmp_path_factory) -> Path:
    """The small world with a flipped byte, a truncated tar and a tar that is gone."""
    root = Path(shutil.copytree(world, tmp_path_factory.mktemp("damaged") / "world"))
    split = Split.open(root, "train")
    middle = int(split.column("aerial_offset")[5] + split.column("aerial_size")[5] // 2)
    with split.tar(5).open("r+b") as tar:
        tar.seek(middle)
        (byte,) = tar.read(1)
        tar.seek(middle)
        tar.write(bytes([byte ^ 4]))
    with split.tar(16).open("r+b") as tar:
        tar.truncate(int(split.column("aerial_offset")[30]))
    split.tar(32).unlink()
    return root


LOST = {5: "checksum", 30: "truncated", 31: "truncated", **dict.fromkeys(range(32, 48), "missing")}


def losses(run: RunFolder) -> dict[int, float]:
    return {r["step"]: r["losses"]["loss"] for r in run.read_metrics() if "losses" in r}


def quarantined(run: RunFolder) -> list[dict]:
    """The lines in the order of batches, as ranks append them in any."""
    lines = [json.loads(line) for line in run.quarantine.read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["epoch"], line["batch"], line["position"]))


def without_detail(lines: list[dict]) -> list[dict]:
    """The lines without the sentences, which name the folder or the store."""
    return [{name: line[name] for name in line if name != "detail"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> RunFolder:
    """Where the run on damaged data goes that the others must equal."""
    return RunFolder(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def reference(undisturbed, damaged, write_config, train_to_end) -> RunFolder:
    """A run over the damaged data that nothing else happens to."""
    if not undisturbed.root.exists():
        data = {"shards": str(damaged), **DATA}
        train_to_end(write_config(undisturbed.root, data=data, **SECTIONS))
    return undisturbed


@pytest.mark.timeout(600)
def test_damage_an_absence_and_a_kill_change_nothing(
    reference, damaged, write_config, start_training, train_to_end, tmp_path
):
    keys = Split.open(damaged, "train").key
    assert list(losses(reference)) == list(range(1, TOTAL + 1))
    found = {line["key"]: line["reason"] for line in quarantined(reference)}
    assert found == {keys(sample): reason for sample, reason in LOST.items()}

    run = RunFolder(tmp_path / "disturbed")
    root = Path(shutil.copytree(damaged, tmp_path / "data"))
    data = {"shards": str(root), **DATA}
    config = write_config(run.root, data=data, **SECTIONS)
    process = start_training(config)
    wait_for(lambda: len(losses(run)) >= 3, process)
    root.rename(tmp_path / "elsewhere")
    time.sleep(3)
    reached = len(losses(run))
    assert reached < TOTAL
    (tmp_path / "elsewhere").rename(root)
    wait_for(lambda: len(losses(run)) >= max(11, reached + 1), process)
    kill_ranks(config)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    train_to_end(config)

    assert losses(run) == losses(reference)
    assert without_detail(quarantined(run)) == without_detail(quarantined(reference))


@pytest.mark.timeout(600)
def test_a_run_that_eats_garbage_ends_and_so_does_one_whose_storage_stays_away(
    damaged, write_config, start_training, train_to_end, tmp_path
):
    run = RunFolder(tmp_path / "run")
    root = Path(shutil.copytree(damaged, tmp_path / "data"))
    data = {"shards": str(root), **DATA, "max_quarantined": len(LOST) - 1}
    refused = train_to_end(write_config(run.root, data=data, **SECTIONS), exit_code=1)
    assert f"{len(LOST)} samples are out of reach" not in refused
    assert f"{len(LOST)} samples could not be read, more than data.max_quarantined=18" in refused
    assert str(run.quarantine) in refused
    lines = quarantined(run)
    assert len({line["key"] for line in lines}) == len(LOST)
    assert {line["rank"] for line in lines} == {0, 1}  # neither rank alone had so many
    assert all(
        len({line["key"] for line in lines if line["rank"] == rank}) < len(LOST) for rank in (0, 1)
    )
    assert run.read_state()["status"] == "failed"
    assert "more than data.max_quarantined=18" in run.read_state()["reason"]

    run = RunFolder(tmp_path / "away")
    config = write_config(run.root, data={"shards": str(root), **DATA}, **SECTIONS)
    process = start_training(config)
    wait_for(lambda: len(losses(run)) >= 3, process)
    root.rename(tmp_path / "elsewhere")
    start = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert time.monotonic() - start < 60  # 18 s of attempts, and the launchers' own
    assert "can't be read (No such file or directory), after 6 attempts" in output
    assert run.read_state()["status"] == "failed"
    assert "is the storage reachable?" in run.read_state()["reason"]
    assert ranks_of(config) == []


@pytest.mark.timeout(600)
def test_a_store_gives_the_same_run_slow_or_away_and_tells_no_secrets(
    reference, damaged, s3, write_config, start_training, tmp_path
):
    s3.put(damaged, s3.url)
    tar = max(path.stat().st_size for path in (damaged / "train").glob("*.tar"))
    cache = {"folder": str(tmp_path / "cache"), "gigabytes": 2.2 * tar / 1e9}
    run = RunFolder(tmp_path / "run")
    data = {"shards": s3.url, **DATA, "cache": cache}
    s3.proxy.delay_seconds = 0.005
    process = start_training(write_config(run.root, data=data, **SECTIONS))
    wait_for(lambda: len(losses(run)) >= 3, process)
    s3.proxy.cut()
    threading.Timer(2.0, s3.proxy.mend).start()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert losses(run) == losses(reference)
    assert without_detail(quarantined(run)) == without_detail(quarantined(reference))

    command = [sys.executable, "-m", "smdt.cli", "evaluate", run.root, "--shards", s3.url]
    evaluated = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert evaluated.returncode == 0, evaluated.stderr
    location(f"{s3.url}/val/val-000000.tar").unlink()
    missing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "16 samples are out of reach, more than max_missing=0" in missing.stderr
    tolerant = [*command, "--max-missing", "16"]
    left_out = subprocess.run(tolerant, cwd=ROOT, capture_output=True, text=True, check=False)
    assert left_out.returncode == 0, left_out.stderr

    said = [output, evaluated.stdout, evaluated.stderr, missing.stderr]
    written = [path.read_bytes() for path in run.root.rglob("*") if path.is_file()]
    for text in [*(each.encode() for each in said), *written]:
        assert KEY_ID.encode() not in text
        assert SECRET.encode() not in text


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_store_that_stays_away_ends_a_run(damaged, s3, write_config, start_training, tmp_path):
    s3.put(damaged, s3.url)
    run = RunFolder(tmp_path / "run")
    tar = max(path.stat().st_size for path in (damaged / "train").glob("*.tar"))
    cache = {"folder": str(tmp_path / "cache"), "gigabytes": 2.2 * tar / 1e9}
    # A request that was under way takes a minute to fail, and then the store is given another: the
    # rank that waits in a collective for the one that waits for the store must wait longer.
    patient = {"name": "test", "out": str(run.root), "seed": 3, "timeout_seconds": 200}
    data = {"shards": s3.url, **DATA, "cache": cache}
    process = start_training(config := write_config(run.root, run=patient, data=data, **SECTIONS))
    wait_for(lambda: len(losses(run)) >= 3, process)
    s3.proxy.cut()
    start = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert 60 < time.monotonic() - start < 150
    assert f"{s3.url}/" in run.read_state()["reason"]  # a tar, or the manifest of a tar not found
    assert "is out of reach" in output
    assert ranks_of(config) == []

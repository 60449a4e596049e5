"""The ablation: which runs it makes, how it counts them, and that it goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.ablation import Cell, cells, finished, summary
from data_shards.base.errors import InputError
from smdt.training.checkpoints.run_folder import RunFolder, write_json

ROOT = Path(__file__).parent.parent.parent


def test_each_seed_has_every_condition_before_the_next_one_begins():
    found = list(cells(3))
    assert len(found) == len({cell.name for cell in found}) == 24
    for seed in range(3):
        assert {cell.condition for cell in found[8 * seed : 8 * seed + 8] if cell.seed == seed} == {
            (aerial, painted)
            for aerial in ("raw", "polar", "mixed", "aligned")
            for painted in (False, True)
        }


def test_runs_differ_by_their_condition_alone(tmp_path):
    def differences(a, b):
        left, right = (c.config("s", tmp_path, ["batch.global=8"]).model_dump() for c in (a, b))
        return {key for key in left if left[key] != right[key]}

    raw = Cell("raw", False, 0)
    assert differences(raw, Cell("polar", False, 0)) == {"aerial", "run"}
    assert differences(raw, Cell("raw", True, 0)) == {"semantics", "run"}
    assert raw.config("s", tmp_path, ["batch.global=8"]).batch.global_batch == 8


def test_spread_is_over_the_seeds_of_one_condition():
    other = {"R@1": 0.9, "R@5": 0.9, "R@10": 0.9}
    found = {
        Cell("mixed", False, 0): {"R@1": 0.1, "R@5": 0.4, "R@10": 0.5},
        Cell("mixed", True, 0): other,
        Cell("mixed", False, 1): {"R@1": 0.3, "R@5": 0.4, "R@10": 0.8},
    }
    plain, painted = summary(found)
    assert (plain.aerial, plain.painted, painted.painted) == ("mixed", False, True)
    assert plain.mean("R@1") == pytest.approx(0.2)
    assert plain.deviation("R@1") == pytest.approx(0.2 / 2**0.5)
    assert plain.deviation("R@5") == 0
    assert painted.deviation("R@1") is None


def test_a_run_of_another_budget_is_not_taken_for_this_one(tmp_path):
    config = Cell("mixed", False, 0).config("s", tmp_path, [])
    assert finished(config) is None
    folder = RunFolder(config.run.out)
    folder.create()
    folder.config.write_text(config.to_yaml())
    write_json(folder.evaluation, {"step": 3, "scores": {"R@1": 0.5}})
    folder.write_state("preempted", 3)
    assert finished(config) is None
    folder.write_state("done", 3)
    assert finished(config) == {"R@1": 0.5}
    with pytest.raises(InputError, match="another configuration: name another --out"):
        finished(Cell("mixed", False, 0).config("s", tmp_path, ["schedule.length=9 steps"]))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_stopped_it_goes_on_and_trains_nothing_twice(aligned_world, tmp_path):
    small = ("geometry.panorama_size=[32,128]", "model.width=32", "model.layers=2")
    budget = ("batch.global=8", "schedule.length=3 steps", "schedule.warmup_steps=1")
    command = [
        *(sys.executable, "-m", "benchmarks.ablation", "--shards", str(aligned_world)),
        *("--out", str(tmp_path / "runs"), "--seeds", "1", "--json", str(tmp_path / "a.json")),
        *(*small, *budget, "precision=fp32"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not (tmp_path / "runs" / "polar-0" / "state.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    done = [RunFolder(folder) for folder in sorted((tmp_path / "runs").iterdir())]
    done = [folder for folder in done if (folder.read_state() or {})["status"] == "done"]
    assert 2 <= len(done) < 8
    before = {folder.root: folder.evaluation.stat().st_mtime_ns for folder in done}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert {root: RunFolder(root).evaluation.stat().st_mtime_ns for root in before} == before
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert len(rows) == 8
    assert all(0 <= row["R@1"]["by_seed"]["0"] <= 1 for row in rows)

"""One run as an operator sees it: endpoints, damaged bytes, logs, evaluation, report."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from data_shards.build.dataset import build
from data_shards.format.plan import BuildOptions
from data_shards.world.source import WorldSource
from smdt.data.split import Split
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import ROOT, wait_for


@pytest.fixture
def damaged_world(tmp_path) -> Path:
    """A small world with one flipped byte in a training sample's aerial image."""
    root = tmp_path / "damaged"
    build(WorldSource(1, 48, 16, "easy", (32, 128), 96), root, BuildOptions(), workers=1)
    split = Split.open(root, "train")
    offset, size = (int(split.column(f"aerial_{what}")[17]) for what in ("offset", "size"))
    with split.tar(17).open("r+b") as tar:
        tar.seek(offset + size // 2)
        (byte,) = tar.read(1)
        tar.seek(offset + size // 2)
        tar.write(bytes([byte ^ 4]))
    return root


def smdt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smdt.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def counters(target: Path) -> dict[str, float]:
    """What a rank's endpoint says, by metric name, labels left out."""
    (entry,) = json.loads(target.read_text())
    with urlopen(f"http://{entry['targets'][0]}/metrics") as answer:
        text = answer.read().decode()
    rank = int(target.stem.rsplit("-", 1)[1])
    lines = re.findall(rf'^(smdt_\w+)\{{.*rank="{rank}".*\}} (\S+)$', text, re.MULTILINE)
    assert lines, text
    assert f'rank="{1 - rank}"' not in text
    return {name: float(value) for name, value in lines}


@pytest.mark.timeout(600)
def test_training_goes_on_over_a_damaged_sample_and_tells_of_it(
    damaged_world, write_config, start_training, tmp_path
):
    run = RunFolder(tmp_path / "run")
    data = {"shards": str(damaged_world), "decode_threads": 1, "read_threads": 1}
    sections = {
        "data": data,
        "schedule": {"length": "10 epochs", "warmup_steps": 4},
        "telemetry": {"metrics_port": 0, "device_tflops": 0.01},
    }
    process = start_training(write_config(run.root, **sections))
    targets = [run.targets / f"test-rank-{rank:05d}.json" for rank in (0, 1)]
    wait_for(lambda: all(target.exists() for target in targets), process)
    seen = wait_for(
        lambda: [c for c in map(counters, targets) if c.get("smdt_steps_total", 0) >= 2], process
    )
    for values in seen:
        assert values["smdt_read_bytes_total"] > 0
        assert values["smdt_device_memory_bytes"] > 1e8
        assert values["smdt_run_info"] == 1
        assert 0 < values["smdt_model_flops_utilization"] < 1
        parts = values["smdt_data_wait_seconds_total"] + values["smdt_compute_seconds_total"]
        assert parts <= values["smdt_step_seconds_sum"]
        assert 0 < values["smdt_collective_wait_seconds_total"] < values["smdt_step_seconds_sum"]
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    (key,) = {json.loads(line)["key"] for line in run.quarantine.read_text().splitlines()}
    assert key == Split.open(damaged_world, "train").key(17)
    assert not any(target.exists() for target in targets)
    assert (run.logs / "rank-00000.log").is_file()
    assert (run.logs / "rank-00001.log").is_file()

    evaluated = smdt(
        "evaluate", run.root, "--shards", damaged_world, "--json", tmp_path / "recall.json"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    ours = json.loads((tmp_path / "recall.json").read_text())["scores"]
    theirs = json.loads(run.evaluation.read_text())["scores"]
    assert ours.keys() == {"R@1", "R@5", "R@10", "R@1%"}
    assert ours == pytest.approx(theirs)

    missing = smdt("evaluate", run.root, "--shards", damaged_world, "--split", "train")
    assert missing.returncode == 1
    assert key in missing.stderr

    verified = smdt("shards", "verify", damaged_world)
    assert verified.returncode == 1
    assert key in verified.stdout + verified.stderr

    reported = smdt("report", run.root)
    assert reported.returncode == 0, reported.stderr
    name = Split.open(damaged_world, "train").source_id(17)
    row = f'<td>checksum</td><td class="n">1</td><td>{name}</td>'
    assert row in run.report.read_text()

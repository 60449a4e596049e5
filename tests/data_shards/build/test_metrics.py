import json
import signal
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from data_shards.build.dataset import build
from data_shards.build.metrics import ShardMetrics
from data_shards.format.plan import BuildOptions
from data_shards.sources.folder import FolderSource


def values(text):
    """Sample name, and the reason where it has one -> value; checks the labels of all."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            reason = labels.pop("reason", None)
            assert labels.keys() == {"run", "stage", "rank", "host"}
            assert labels["stage"] == "shards"
            if not sample.name.endswith("_created"):
                found[sample.name, reason] = sample.value
    return found


def test_a_resumed_build_counts_what_it_did_itself(folder, tmp_path):
    from prometheus_client import generate_latest

    out, options = tmp_path / "out", BuildOptions(samples_per_shard=3)
    build(FolderSource(folder), out, options, workers=1)
    (out / "train" / "train-000000.parquet").unlink()
    metrics = ShardMetrics("run", 0, "here")
    manifest = build(FolderSource(folder), out, options, workers=1, watchers=[metrics])
    first = manifest.splits["train"].shards[0]
    assert values(generate_latest(metrics.registry).decode()) == {
        ("smdt_shards_samples_total", None): first.samples,
        ("smdt_shards_bytes_total", None): first.bytes,
        ("smdt_shards_rejected_total", "missing_file"): 1,
        ("smdt_shards_planned", None): 4,
        ("smdt_shards_done", None): 4,
    }


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, None])
def test_a_job_can_be_found_and_read_while_it_runs(tmp_path, make_folder, end):
    raw, targets = make_folder(tmp_path / "raw", 60, size=256), tmp_path / "targets"
    command = [sys.executable, "-m", "data_shards", "build", "folder", "--root", raw]
    options = ["--out", tmp_path / "mine", "--samples-per-shard", 3, "--workers", 1]
    task = ["--task", "1/2", "--metrics-targets", targets]
    process = subprocess.Popen([str(word) for word in [*command, *options, *task]])
    entry = targets / "mine-shards-00001.json"
    deadline = time.monotonic() + 60
    done = 0.0
    while done < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
        if entry.exists():
            (address,) = json.loads(entry.read_text())[0]["targets"]
            assert address.startswith("127.0.0.1:")
            with urlopen(f"http://{address}/metrics") as answer:
                found = values(answer.read().decode())
            done = found["smdt_shards_done", None]
            if done:
                assert found["smdt_shards_planned", None] == 10
                assert done <= found["smdt_shards_samples_total", None] <= 3 * done
    if end is not None:
        process.send_signal(end)
    assert process.wait(60) == (0 if end is None else 75)
    assert list(targets.iterdir()) == []

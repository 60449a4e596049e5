"""`smdt launch` on hosts that ssh reaches: ready or not, started, killed, finished."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster.launches import DEEPSPEED_FILES, ROOT, assert_same, launch_command, now

SECRET = "hush hush $HOME"


def check(cluster, config, *options):
    words = ["check", "--hostfile", cluster.hostfile, "--config", config, *options]
    words += ["--deepspeed_config", DEEPSPEED_FILES / "zero2.json"]
    command = launch_command(cluster.hosts[0], *words)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_hosts_are_ready_or_the_table_says_why(cluster, write_config, tmp_path):
    run, facts = tmp_path / "run", tmp_path / "facts.json"
    config = write_config(run, batch={"global": 6})
    done = check(cluster, config, "--json", facts)
    assert done.returncode == 0, done.stderr
    seen = json.loads(facts.read_text())
    assert seen["findings"] == []
    assert [each["addresses"] for each in seen["facts"].values()] == [
        [host.address] for host in cluster.hosts
    ]
    assert not list(run.glob("preflight-*"))

    # b has another run folder, c another configuration.
    b, c = cluster.hosts[1:]
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("")
    b.run("mount", "--bind", other, run)
    c.run("mount", "--bind", other / "file", config)
    try:
        done = check(cluster, config, "--json", facts)
    finally:
        b.run("umount", run)
        c.run("umount", config)
    assert done.returncode == 1
    assert "1 of 3 hosts are ready" in done.stderr
    found = {(f["host"], f["check"]) for f in json.loads(facts.read_text())["findings"]}
    assert found == {("b", "run folder"), ("c", "configuration")}


@pytest.mark.full
def test_a_host_that_is_away_and_a_meeting_point_that_nobody_reaches(
    cluster, write_config, tmp_path
):
    config, facts = write_config(tmp_path / "run", batch={"global": 6}), tmp_path / "facts.json"
    cluster.hosts[2].cut()
    try:
        done = check(cluster, config, "--json", facts, "--master-addr", "10.77.0.99")
    finally:
        cluster.hosts[2].mend()
    assert done.returncode == 1
    found = {(f["host"], f["check"]) for f in json.loads(facts.read_text())["findings"]}
    assert found == {("c", "ssh"), ("b", "meeting")}


@pytest.mark.timeout(600)
def test_a_killed_rank_changes_nothing(
    undisturbed, launch, write_config, cluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("SECRET", SECRET)
    started = launch(write_config(tmp_path / "run", precision="bf16"), "--env", "SECRET")
    started.wait_for(lambda: started.steps >= 11)
    (rank,) = started.ranks(cluster.hosts[1])
    environment = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    assert f"SECRET={SECRET}".encode() in environment
    began = now()
    os.kill(rank, signal.SIGKILL)
    started.wait_for(lambda: started.say("attempt 2"))
    print(f"ended after {started.say('the attempt ended') - began:.0f} s")
    shown = started.metrics().splitlines()
    (restarts,) = [line for line in shown if line.startswith("smdt_launcher_restarts_total")]
    (used,) = [line for line in shown if 'state="used"' in line]
    assert (restarts.split()[-1], used.split()[-1]) == ("1.0", "2.0")
    output = started.wait()
    assert "a process on b was ended by SIGKILL" in output
    assert started.left() == []
    assert_same(started.run, undisturbed)
    written = [path.read_bytes() for path in started.run.root.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in text for text in [output.encode(), *written])

import json
import shlex
import subprocess
import sys

import pytest
import yaml

from launcher.cli import ASKED
from smdt.training.checkpoints.run_folder import RunFolder
from tests.distributed.runs import ROOT

HOSTS = "a slots=2\nb slots=2\n"


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


def launcher(*words, **options):
    command = [sys.executable, "-m", "launcher", *map(str, words)]
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, **options}
    return subprocess.run(command, **settings)


LABELS = {"run": "test", "stage": "retrieval"}


@pytest.fixture
def config(tmp_path):
    """A configuration for commands that open no data set."""
    path = tmp_path / "run.yaml"
    content = {
        "stage": "retrieval",
        "run": {"name": "test", "out": str(tmp_path / "run")},
        "data": {"shards": str(tmp_path / "none")},
        "telemetry": {"metrics_address": "0.0.0.0", "metrics_port": 9400},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_dry_run_prints_the_command_and_touches_nothing(write_config, hostfile, tmp_path):
    config = write_config(tmp_path / "run")
    words = ["up", "--hostfile", hostfile, "--config", config, "--exclude", "b:0"]
    words += [
        "--env",
        "SECRET",
        "--env",
        "NOT_SET",
        "--dry-run",
        "batch.global=12",
        "schedule.length=20 steps",
    ]
    done = launcher(*words, env={"PATH": "/usr/bin:/bin", "SECRET": "hush"})
    assert done.returncode == 0, done.stderr
    argv = shlex.split(done.stdout)
    assert argv[argv.index("--include") + 1] == "a:0,1@b:1"
    assert argv[argv.index("--module") + 1] == "smdt.train"
    assert argv[-2:] == ["batch.global=12", "schedule.length=20 steps"]
    assert "hush" not in done.stdout + done.stderr
    assert "not checked here: --env NOT_SET is not set in this shell" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wrong_input_is_said_before_anything_starts(write_config, hostfile, tmp_path):
    config = write_config(tmp_path / "run")
    words = ["up", "--hostfile", hostfile, "--config", config, "--dry-run"]
    for more, sentence in [
        (["batch.global=6"], "which 4 ranks x 1 chunks do not divide"),
        (["--env", "NOT-A-NAME"], "--env 'NOT-A-NAME' is not a variable name"),
        (["--include", "z"], "names 'z', which is not in the file"),
        (["--master-addr", "a;b"], "--master-addr 'a;b' is not a host name or IP address"),
        (["run.out=a\nb"], "which no command line of a host can hold"),
    ]:
        done = launcher(*words, *more)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_stop_asks_only_a_run_that_runs(config, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    refused = launcher("stop", "--config", config)
    assert refused.returncode == 1
    assert "does not run" in refused.stderr
    folder.write_state("running", 3)
    folder.stop.touch()  # of a pod that has to leave
    assert launcher("stop", "--config", config).returncode == 0
    assert folder.stop.read_bytes() == ASKED


@pytest.mark.slow
def test_targets_are_prometheus_entries(config, hostfile, tmp_path):
    out = tmp_path / "targets.json"
    words = ["targets", "--hostfile", hostfile, "--config", config, "--out", out]
    done = launcher(*words)
    assert done.returncode == 0, done.stderr
    entries = json.loads(out.read_text())
    addresses = [address for entry in entries for address in entry["targets"]]
    assert addresses == ["a:9400", "a:9401", "b:9400", "b:9401"]
    assert all(entry["labels"].items() >= LABELS.items() for entry in entries)
    assert [entry["labels"]["rank"] for entry in entries] == [str(n) for n in range(len(entries))]
    loopback = launcher(*words, "telemetry.metrics_address=127.0.0.1")
    assert loopback.returncode == 2
    assert "which no other host reaches" in loopback.stderr


@pytest.mark.slow
def test_a_dry_run_and_a_script_need_nothing_but_the_configuration(config, hostfile, tmp_path):
    absent = f"not checked here: data.shards {tmp_path}/none is not on this machine"
    dry = launcher("up", "--hostfile", hostfile, "--config", config, "--dry-run")
    assert (dry.returncode, dry.stderr.splitlines()) == (0, [absent])
    assert shlex.split(dry.stdout)[-4:] == ["--config", str(config), "--resume", "auto"]
    assert not (tmp_path / "run").exists()

    out = tmp_path / "job.sh"
    nodes = ["--config", config, "--nodes", 2, "--ranks-per-node", 2, "--out", out]
    slurm = launcher("slurm", *nodes, "run.out=/proc/none/run")
    first, second = slurm.stderr.splitlines()
    assert (slurm.returncode, first) == (0, absent)
    assert second.startswith("not made here: run folder /proc/none/run: ")
    assert slurm.stdout == f"mkdir -p /proc/none/run/logs && sbatch {out}\n"
    assert "--output=/proc/none/run/logs/slurm-%j.log" in out.read_text()

    started = launcher("up", "--hostfile", hostfile, "--config", config)
    assert (started.returncode, started.stdout) == (2, "")
    assert f"There is no folder {tmp_path}/none" in started.stderr


@pytest.mark.slow
def test_stop_says_that_the_run_folder_is_elsewhere(config, tmp_path):
    done = launcher("stop", "--config", config)
    assert done.returncode == 1
    assert f"The run folder {tmp_path}/run does not exist here" in done.stderr

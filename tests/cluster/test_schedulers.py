"""What `smdt launch slurm` and `k8s` write, run for real: a preempted job, pods that must leave."""

import os
import subprocess
import sys
import time

import pytest
import yaml

from smdt.training.run_folder import RunFolder
from tests.cluster.launches import DEEPSPEED_FILES, ROOT, assert_same, losses
from tests.cluster.slurm import lacking, slurm

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def render(kind, config, out, *options):
    words = [kind, "--config", config, "--deepspeed_config", DEEPSPEED_FILES / "zero2.json"]
    words += ["--nodes", 2, "--ranks-per-node", 1, "--out", out, *options]
    command = [sys.executable, "-m", "launcher", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@pytest.fixture
def two_nodes(tmp_path):
    if lacking():
        pytest.skip(lacking())
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm(folder) as up:
        yield up


def test_a_preempted_slurm_job_queues_again_and_changes_nothing(
    undisturbed, two_nodes, write_config, tmp_path, monkeypatch
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    run, script = RunFolder(tmp_path / "run"), tmp_path / "job.sh"
    render("slurm", write_config(run.root, precision="bf16"), script, "--option=--partition=low")
    job = two_nodes.run("sbatch", "--parsable", script)
    log = run.logs / f"slurm-{job}.log"
    wait_for(lambda: len(losses(run)) >= 11)
    more_important = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    two_nodes.run("sbatch", *more_important, "--wrap", "sleep 1")
    wait_for(lambda: two_nodes.state(job) == "PENDING", 90)
    assert run.read_state()["status"] == "preempted"
    assert "starts again: a host was told to leave; all ranks saved" in log.read_text()
    two_nodes.run("scontrol", "update", f"jobid={job}", "starttime=now")  # not in two minutes
    wait_for(lambda: two_nodes.state(job) == "COMPLETED")
    assert "is done" in log.read_text()
    assert_same(run, undisturbed)


def test_a_slurm_job_that_is_asked_to_stop_does_not_queue_again(
    two_nodes, write_config, tmp_path, monkeypatch
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    run, script = RunFolder(tmp_path / "run"), tmp_path / "job.sh"
    config = write_config(run.root, schedule={"length": "100 epochs"})
    render("slurm", config, script)
    job = two_nodes.run("sbatch", "--parsable", script)
    wait_for(lambda: len(losses(run)) >= 2)
    command = [sys.executable, "-m", "launcher", "stop", "--config", str(config)]
    subprocess.run(command, cwd=ROOT, check=True)
    wait_for(lambda: two_nodes.state(job) == "FAILED", 90)  # its exit code is 75
    assert run.read_state()["status"] == "preempted"


def test_pods_that_must_leave_save_and_go_on(undisturbed, cluster, write_config, tmp_path):
    """The containers' own script on two hosts that bear the pods' names."""
    run, out = RunFolder(tmp_path / "run"), tmp_path / "jobset.yaml"
    config = write_config(run.root, precision="bf16")
    more = ["--image", "smdt", "--claim", "claim", "--mount", tmp_path, "--folder", ROOT]
    render("k8s", config, out, *more, "--python", sys.executable)
    (job,) = yaml.safe_load(out.read_text())["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]["containers"][0]
    names = [f"{host.address} test-hosts-0-{i}.test" for i, host in enumerate(cluster.hosts[:2])]
    with (cluster.hostfile.parent / "hosts").open("a") as file:
        file.write("\n".join([*names, ""]))

    def pods():
        return [
            subprocess.Popen(
                host.command([*pod["command"], *pod["args"]]),
                env={**ENVIRONMENT, "JOB_COMPLETION_INDEX": str(index), "HOSTNAME": host.name},
                cwd=pod["workingDir"],
            )
            for index, host in enumerate(cluster.hosts[:2])
        ]

    first = pods()
    wait_for(lambda: len(losses(run)) >= 11)
    hook = pod["lifecycle"]["preStop"]["exec"]["command"]
    subprocess.run(cluster.hosts[1].command(hook), check=True)
    assert [process.wait(120) for process in first] == [75, 75]
    assert run.read_state()["status"] == "preempted"
    assert [process.wait(240) for process in pods()] == [0, 0]
    assert_same(run, undisturbed)

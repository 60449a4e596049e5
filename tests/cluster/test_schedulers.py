"""What `smdt launch slurm` and `k8s` write, run for real: a preempted job, pods that must leave."""

import os
import subprocess
import sys
import time

import pytest
import yaml

from smdt.training.checkpoints.run_folder import RunFolder
from tests.cluster.launches import DEEPSPEED_FILES, ROOT, assert_same, losses
from tests.cluster.slurm import TOOLS, slurm
from tests.namespaces import require_namespaces

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
    require_namespaces(*TOOLS)
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
    began = time.monotonic()
    wait_for(lambda: two_nodes.state(job) == "PENDING", 90)
    print(f"ended after {time.monotonic() - began:.0f} s")
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
    assert "asked to stop: all ranks saved" in (run.logs / f"slurm-{job}.log").read_text()
    assert run.read_state()["status"] == "preempted"


@pytest.fixture
def pods(cluster, tmp_path):
    """Start what a JobSet's containers run, on two hosts that bear the pods' names."""
    started = []

    def start(config, uid):
        out = tmp_path / "jobset.yaml"
        more = ["--image", "smdt", "--claim", "claim", "--mount", tmp_path, "--folder", ROOT]
        render("k8s", config, out, *more, "--python", sys.executable)
        (job,) = yaml.safe_load(out.read_text())["spec"]["replicatedJobs"]
        pod = job["template"]["spec"]["template"]["spec"]["containers"][0]
        hosts = cluster.hosts[:2]
        names = [f"{host.address} test-hosts-0-{i}.test" for i, host in enumerate(hosts)]
        with (cluster.hostfile.parent / "hosts").open("a") as file:
            file.write("\n".join([*names, ""]))
        started.extend(
            subprocess.Popen(
                host.command([*pod["command"], *pod["args"]]),
                env={**ENVIRONMENT, "JOB_COMPLETION_INDEX": str(index), "SMDT_ATTEMPT": uid},
                cwd=pod["workingDir"],
            )
            for index, host in enumerate(hosts)
        )
        leave = hosts[1].command(pod["lifecycle"]["preStop"]["exec"]["command"])
        return started[-2:], leave

    yield start
    for process in started:
        process.kill()


def test_pods_that_must_leave_save_and_go_on(undisturbed, pods, write_config, tmp_path):
    run = RunFolder(tmp_path / "run")
    config = write_config(run.root, precision="bf16")
    first, leave = pods(config, "uid-1")
    wait_for(lambda: len(losses(run)) >= 11)
    began = time.monotonic()
    subprocess.run(leave, check=True)
    assert [process.wait(120) for process in first] == [75, 75]
    print(f"ended after {time.monotonic() - began:.0f} s")
    assert run.read_state()["status"] == "preempted"
    again, _ = pods(config, "uid-2")
    assert [process.wait(240) for process in again] == [0, 0]
    assert run.read_state()["attempt"] == "uid-2"
    assert_same(run, undisturbed)


def test_pods_of_a_run_that_is_asked_to_stop_save_and_are_done(pods, write_config, tmp_path):
    run = RunFolder(tmp_path / "run")
    config = write_config(run.root, schedule={"length": "100 epochs"})
    started, leave = pods(config, "uid-1")
    wait_for(lambda: len(losses(run)) >= 2)
    command = [sys.executable, "-m", "launcher", "stop", "--config", str(config)]
    subprocess.run(command, cwd=ROOT, check=True)
    subprocess.run(leave, check=True)  # is not what ends it
    assert [process.wait(120) for process in started] == [0, 0]
    assert run.read_state()["status"] == "preempted"

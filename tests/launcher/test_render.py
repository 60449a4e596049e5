"""What the schedulers get; tests/cluster/test_schedulers.py runs it."""

import shlex
import subprocess
from dataclasses import replace

import pytest
import yaml

from data_shards.errors import InputError
from launcher.render import Allocation, jobset, slurm_script

ALLOCATION = Allocation(
    name="My.Run_1",
    run="/data/it's a run",
    folder="/opt/smdt",
    arguments=["--config", "run.yaml", "schedule.length=20 steps", 'run.name=a"b$c'],
    nodes=3,
    ranks=8,
    max_restarts=5,
    notice_seconds=120,
)
POD = {"image": "registry/smdt:1", "python": "python", "claim": "shared", "mount": "/data"}


def is_shell(text):
    checked = subprocess.run(
        ["bash", "-n"], input=text, capture_output=True, text=True, check=False
    )
    return checked.returncode == 0 and not checked.stderr


def test_a_slurm_script_asks_for_one_task_a_rank():
    script = slurm_script(ALLOCATION, ["--partition=gpu", "--exclusive"])
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script.splitlines()
        if line.startswith("#SBATCH --")
    )
    assert asked["nodes"] == "3"
    assert asked["ntasks-per-node"] == "8"
    assert asked["signal"] == "B:USR1@120"
    assert asked["partition"] == "gpu"
    assert {"requeue", "exclusive"} <= asked.keys()
    assert is_shell(script)
    assert "--max-restarts 5" in script


def test_the_ranks_of_a_slurm_script_get_their_arguments_as_they_are():
    script = slurm_script(ALLOCATION, [])
    command = script[script.index("' rank ") :].split(" &\n")[0]
    assert shlex.split(command.removeprefix("'"))[-len(ALLOCATION.arguments) :] == list(
        ALLOCATION.arguments
    )


@pytest.mark.parametrize("option", ["partition=gpu", "--a b", "--x=1\n#SBATCH --y"])
def test_what_is_no_option_of_sbatch_is_refused(option):
    with pytest.raises(InputError, match="none of sbatch"):
        slurm_script(ALLOCATION, [option])


def test_a_jobset_has_what_its_api_demands():
    document = yaml.safe_load(jobset(ALLOCATION, **POD))
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert document["kind"] == "JobSet"
    assert document["metadata"]["name"] == "my-run-1"
    spec = document["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 5
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)
    assert job["backoffLimit"] == 0
    codes = job["podFailurePolicy"]["rules"][0]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert codes["onExitCodes"]["values"] == [75]
    # A pod failure policy is allowed with no other restart policy.
    assert pod["restartPolicy"] == "Never"
    assert container["image"] == "registry/smdt:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    (attempt,) = [each for each in container["env"] if each["name"] == "SMDT_ATTEMPT"]
    label = attempt["valueFrom"]["fieldRef"]["fieldPath"]
    assert label == "metadata.labels['batch.kubernetes.io/controller-uid']"


def test_a_pod_that_has_to_leave_asks_without_talking_over_a_user(tmp_path):
    place = {**POD, "mount": str(tmp_path)}
    document = yaml.safe_load(jobset(replace(ALLOCATION, run=str(tmp_path)), **place))
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    stop = tmp_path / "stop"
    subprocess.run(hook, check=True)
    assert stop.read_text() == "a pod has to leave\n"
    stop.write_bytes(b"")
    subprocess.run(hook, check=True, capture_output=True)
    assert stop.read_bytes() == b""


def test_the_index_of_a_pod_is_that_of_its_host():
    document = yaml.safe_load(jobset(ALLOCATION, **POD))
    container = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (script,) = container["containers"][0]["args"]
    assert is_shell(script)
    loop = script[script.index("for index") : script.index(" > /tmp/hostfile")]
    listed = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [
        f"my-run-1-hosts-0-{index}.my-run-1 slots=8" for index in range(3)
    ]
    assert '--node_rank "$JOB_COMPLETION_INDEX"' in script
    assert "--master_addr my-run-1-hosts-0-0.my-run-1" in script


def test_a_run_folder_that_pods_do_not_see_is_refused():
    with pytest.raises(InputError, match="is not below /data"):
        jobset(replace(ALLOCATION, run="/database/run"), **POD)

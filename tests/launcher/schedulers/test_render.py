"""What the schedulers get; tests/cluster/test_schedulers.py runs it."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from data_shards.base.errors import InputError
from data_shards.base.names import kubernetes_name
from launcher.schedulers.render import SchedulerJob, jobset, slurm_script
from tests.distributed.runs import ROOT

ALLOCATION = SchedulerJob(
    name="My.Run_1",
    run="/data/it's a run",
    folder="/opt/smdt",
    arguments=["--config", "run.yaml", "schedule.length=20 steps", 'run.name=a"b$$c$(RUN)'],
    nodes=3,
    ranks=8,
    max_restarts=5,
    notice_seconds=120,
)
NAME = kubernetes_name(ALLOCATION.name)
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
    with pytest.raises(InputError, match="not an option of sbatch"):
        slurm_script(ALLOCATION, [option])


def test_a_jobset_has_what_its_api_demands():
    document = yaml.safe_load(jobset(ALLOCATION, **POD))
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert document["kind"] == "JobSet"
    assert document["metadata"]["name"] == NAME
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
    taken_from = {
        each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"]
        for each in container["env"]
        if "valueFrom" in each
    }
    assert taken_from == {
        "SMDT_ATTEMPT": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "RESTART_ATTEMPT": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']",
    }


def pod_of(run):
    """What a JobSet's pods run, with a program in the ranks' place that does what a test says."""
    document = yaml.safe_load(jobset(replace(ALLOCATION, run=str(run)), **{**POD, "mount": "/"}))
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return container


def ends_with(run, ranks, before="", **environment):
    """Return the exit code of a pod's script whose ranks are a line of shell."""
    (script,) = pod_of(run)["args"]
    start = script.index("python -m deepspeed.launcher.runner")
    end = script.index(" &\n", start)
    script = f"{before}\n{script[:start]}bash -c {shlex.quote(ranks)}{script[end:]}"
    script = script.replace("exec python", f"exec {sys.executable}")
    variables = {**os.environ, "JOB_COMPLETION_INDEX": "0", "SMDT_ATTEMPT": "uid-1", **environment}
    done = subprocess.run(
        ["bash", "-c", script], env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def says(status, attempt="uid-1"):
    content = {"status": status, "step": 7, "reason": "", "retry": True, "attempt": attempt}
    return f"echo {shlex.quote(json.dumps(content))} > $RUN/state.json; "


@pytest.mark.slow
def test_a_pods_script_ends_as_the_run_did(tmp_path):
    seen = f"RUN={tmp_path}; test ! -e $RUN/stop || exit 3; "
    stop = tmp_path / "stop"
    assert ends_with(tmp_path, seen + says("done"))[0] == 0
    assert ends_with(tmp_path, seen + says("failed"))[0] == 1
    assert ends_with(tmp_path, seen + says("preempted", "uid-0"))[0] == 1
    stop.touch()  # an earlier pod's notice
    assert ends_with(tmp_path, seen + says("preempted"))[0] == 75
    told = f"RUN={tmp_path}; kill -TERM $PPID; until [ -e $RUN/stop ]; do sleep 0.1; done; "
    assert ends_with(tmp_path, told + says("preempted"))[0] == 75
    assert stop.read_bytes() == b""


@pytest.mark.slow
def test_a_users_stop_ends_a_set_and_outlives_its_restart(tmp_path):
    asked = f"RUN={tmp_path}; echo asked > $RUN/stop; touch $RUN/stop; "
    assert ends_with(tmp_path, asked + says("preempted")) == (
        0,
        f"The run in {tmp_path} was asked to stop: all ranks saved after step 7.\n",
    )
    still = f"RUN={tmp_path}; [ -s $RUN/stop ] || exit 3; "
    again = {"RESTART_ATTEMPT": "1", "SMDT_ATTEMPT": "uid-2"}
    code, said = ends_with(tmp_path, still, **again)
    assert (code, said.split(": ")[1]) == (0, "its ranks ended before they saved.\n")
    applied_again = f"RUN={tmp_path}; [ ! -e $RUN/stop ] || exit 3; "
    assert ends_with(tmp_path, applied_again + says("done"), RESTART_ATTEMPT="0")[0] == 0


def test_the_index_of_a_pod_is_that_of_its_host():
    document = yaml.safe_load(jobset(ALLOCATION, **POD))
    container = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (script,) = container["containers"][0]["args"]
    assert is_shell(script)
    loop = script[script.index("for index") : script.index(" > /tmp/hostfile")]
    listed = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [
        f"{NAME}-hosts-0-{index}.{NAME} slots=8" for index in range(3)
    ]
    assert '--node_rank "$JOB_COMPLETION_INDEX"' in script
    assert f"--master_addr {NAME}-hosts-0-0.{NAME}" in script


def test_a_run_folder_that_pods_do_not_see_is_refused():
    with pytest.raises(InputError, match="is not below /data"):
        jobset(replace(ALLOCATION, run="/database/run"), **POD)


ODD = ["/data/100%j", "/data/it's $HOME", "/data/$(RUN) $$x", "/data/a;b #c", "/data/日本 é"]
EXPANSIONS = re.compile(r"\$(\$|\([A-Za-z_][A-Za-z0-9_]*\))")


def as_kubernetes_expands(text, variables):
    """What a container gets of its `args`: `$(NAME)` of a variable is its value, `$$` is `$`."""

    def value(found):
        return "$" if found[1] == "$" else variables.get(found[1][1:-1], found[0])

    return EXPANSIONS.sub(value, text)


@pytest.mark.parametrize("run", ODD)
def test_a_pod_gets_folder_and_arguments_as_they_are(run):
    document = yaml.safe_load(jobset(replace(ALLOCATION, run=run), **POD))
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    script = as_kubernetes_expands(container["args"][0], {"RUN": "wrong", "HOME": "wrong"})
    command = script[script.index("--module ") :].split(" &\n")[0]
    assert shlex.split(command)[1:] == ["smdt.train", *ALLOCATION.arguments]
    (line,) = [line for line in script.splitlines() if line.startswith("run=")]
    shown = subprocess.run(
        ["bash", "-c", f'{line}; printf %s "$run"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == run
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["touch", f"{run}/stop"]


@pytest.mark.parametrize("nodes", [1, 3, 1000])
@pytest.mark.parametrize("name", ["7scenes", "2026-11-30.cvusa", "x" * 64, "cvusa", "a-" * 31])
def test_all_names_that_jobset_makes_are_labels_of_kubernetes(name, nodes):
    document = yaml.safe_load(jobset(replace(ALLOCATION, name=name, nodes=nodes), **POD))
    made = document["metadata"]["name"]
    (replicated,) = document["spec"]["replicatedJobs"]
    job = f"{made}-{replicated['name']}-0"
    for each in (made, job, f"{job}-{nodes - 1}-abcde"):
        assert re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", each)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"claim": "My_Claim"}, "--claim"),
        ({"claim": ""}, "--claim"),
        ({"image": "an image"}, "--image"),
        ({"image": "-x"}, "--image"),
        ({"mount": "data"}, "--mount"),
        ({"mount": "/da:ta"}, "--mount"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(change, flag):
    with pytest.raises(InputError, match=flag):
        jobset(ALLOCATION, **{**POD, **change})


def as_sbatch_reads(word):
    """A word of an `#SBATCH` line: a backslash before a character means the character."""
    return re.sub(r"\\(.)", r"\1", word)


@pytest.mark.parametrize("run", ODD)
@pytest.mark.parametrize("name", ["7scenes", "x" * 300, "a b#c"])
def test_slurm_writes_its_log_into_the_run_folder(run, name):
    script = slurm_script(replace(ALLOCATION, run=run, name=name), [])
    assert is_shell(script)
    (output,) = re.findall("^#SBATCH --output=(.*)$", script, re.MULTILINE)
    assert re.fullmatch(r"([^\s#'\"\\]|\\.)+", output)
    symbols = {"%%": "%", "%j": "7"}
    file = re.sub("%[%j]", lambda found: symbols[found[0]], as_sbatch_reads(output))
    assert file == f"{run}/logs/slurm-7.log"
    (job,) = re.findall("^#SBATCH --job-name=(.*)$", script, re.MULTILINE)
    assert re.fullmatch("[A-Za-z0-9._-]{1,100}", job)


@pytest.mark.parametrize("run", ["/data/a\nb", "/data/a\u2028b", "/data/a\x1bb", "/data/\udcff"])
def test_a_run_folder_that_no_script_can_hold_is_refused(run):
    with pytest.raises(InputError, match="the run folder"):
        slurm_script(replace(ALLOCATION, run=run), [])
    with pytest.raises(InputError, match="the run folder"):
        jobset(replace(ALLOCATION, run=run), **POD)
    with pytest.raises(InputError, match="backslash"):
        slurm_script(replace(ALLOCATION, run="/data/a\\b"), [])

import shlex
import subprocess
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.errors import InputError
from launcher.command import (
    ClusterPlan,
    LocalPlan,
    check_gpus,
    cluster_command,
    environment_script,
    local_command,
    local_environment,
    passed_variables,
    remote_argument,
    train_arguments,
)

ARGUMENTS = train_arguments(
    Path("run.yaml"), Path("zero2.json"), "auto", ["run.seed=3", "schedule.length=20 steps"]
)
PLAN = LocalPlan(
    module="smdt.train", arguments=ARGUMENTS, ranks=2, port=29511, cores=5, has_gpu=False
)
CLUSTER = ClusterPlan(
    module="smdt.train",
    arguments=ARGUMENTS,
    hostfile=Path("hosts"),
    hosts={"a": (0, 1), "b": (1,)},
    address="10.0.0.1",
    port=29511,
    environment=Path("/shared/my run/environment.sh"),
)


def value(argv, flag):
    return argv[argv.index(flag) + 1]


def test_the_module_comes_after_the_launchers_own_flags():
    argv = local_command(PLAN)
    launcher, rank = argv[: argv.index("--module")], argv[argv.index("--module") :]
    assert value(launcher, "--num_gpus") == "2"
    assert value(launcher, "--master_port") == "29511"
    assert rank[:4] == ["--module", "smdt.train", "--config", "run.yaml"]
    assert value(rank, "--deepspeed_config") == "zero2.json"
    assert rank[-2:] == ["run.seed=3", "schedule.length=20 steps"]


def test_ranks_share_the_cores_unless_the_user_says_otherwise():
    assert local_environment(PLAN, {}, 17)["OMP_NUM_THREADS"] == "2"
    assert local_environment(PLAN, {"OMP_NUM_THREADS": "4"}, 17)["OMP_NUM_THREADS"] == "4"


def test_the_ranks_know_whose_death_ends_them():
    stale = {"SMDT_LAUNCHER_PID": "1", "SMDT_ATTEMPT": "older"}
    environment = local_environment(PLAN, stale, 17)
    assert environment["SMDT_LAUNCHER_PID"] == "17"
    assert environment["SMDT_ATTEMPT"] != "older"


def test_a_cluster_command_names_hosts_meeting_point_and_module():
    argv = cluster_command(CLUSTER)
    launcher, rank = argv[: argv.index("--module")], argv[argv.index("--module") :]
    assert value(launcher, "--hostfile") == "hosts"
    assert value(launcher, "--include") == "a:0,1@b:1"
    assert value(launcher, "--master_addr") == "10.0.0.1"
    assert value(launcher, "--master_port") == "29511"
    assert shlex.split(value(launcher, "--venv_script")) == ["/shared/my run/environment.sh"]
    assert rank[:4] == ["--module", "smdt.train", "--config", "run.yaml"]


@pytest.mark.slow
def test_deepspeed_understands_the_command():
    from deepspeed.launcher.runner import parse_args

    argv = cluster_command(CLUSTER)
    parsed = parse_args(argv[argv.index("deepspeed.launcher.runner") + 1 :])
    assert (parsed.user_script, parsed.module, parsed.force_multi) == ("smdt.train", True, True)
    assert (parsed.include, parsed.master_addr) == ("a:0,1@b:1", "10.0.0.1")
    assert parsed.user_args[:2] == ["--config", "run.yaml"]


def as_deepspeed_sends_it(arguments):
    """The command line that DeepSpeed's pdsh runner makes of arguments."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    runner = object.__new__(PDSHRunner)
    runner.args = Namespace(user_args=arguments)
    return " ".join(runner.parse_user_args())


@pytest.mark.slow
@given(st.lists(st.text("ab =.$`'\"\\;&|()<>*?~#!{}[]%1", min_size=1), max_size=3))
def test_arguments_reach_the_shell_of_a_host_as_they_are(arguments):
    sent = as_deepspeed_sends_it([remote_argument(argument) for argument in arguments])
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {sent}"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split("\0")[:-1] == (arguments or [""])


@pytest.mark.parametrize("argument", ["run.name=%h", "x=%n", "a\nb"])
def test_what_pdsh_would_replace_is_refused(argument):
    with pytest.raises(InputError, match="write it into the YAML"):
        cluster_command(replace(CLUSTER, arguments=[argument]))


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_a_variable_has_its_value_whatever_it_holds(text):
    script = environment_script({"TOKEN": text, "OTHER": "x"})
    command = ["sh", "-c", f'{script}printf "%s" "$TOKEN"']
    shown = subprocess.run(command, capture_output=True, check=True).stdout
    assert shown == text.encode()


def test_variables_to_pass_must_be_set():
    assert passed_variables(["A"], {"A": "1", "B": "2"}) == {"A": "1"}
    with pytest.raises(InputError, match="--env C: the variable is not set here"):
        passed_variables(["C"], {"A": "1"})
    with pytest.raises(InputError, match="is no variable's name"):
        passed_variables(["A=1"], {"A": "1"})


@pytest.mark.parametrize(("ranks", "gpus"), [(2, 0), (1, 1), (2, 4)])
def test_ranks_have_a_gpu_each_or_none(ranks, gpus):
    check_gpus(ranks, gpus)


def test_too_few_gpus_are_told_before_cuda_does():
    with pytest.raises(InputError, match=r"--ranks 2.* has 1; set --ranks 1"):
        check_gpus(2, 1)

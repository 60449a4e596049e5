import base64
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from launcher.run.command import (
    ClusterLaunch,
    LocalLaunch,
    check_address,
    check_gpus,
    check_working_folder,
    cluster_command,
    devices_of,
    local_command,
    local_environment,
    train_arguments,
)
from launcher.run.variables import environment_script

ARGUMENTS = train_arguments(
    Path("run.yaml"), Path("zero2.json"), "auto", ["run.seed=3", "schedule.length=20 steps"]
)
PLAN = LocalLaunch(
    module="smdt.train", arguments=ARGUMENTS, devices=["4", "6"], port=29511, cores=5, has_gpu=False
)
CLUSTER = ClusterLaunch(
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


def test_the_module_comes_after_the_launchers_own_flags(monkeypatch):
    argv = local_command(PLAN)
    rank = argv[argv.index("--module") :]
    from deepspeed.launcher.launch import parse_args

    monkeypatch.setattr(sys, "argv", argv[argv.index("deepspeed.launcher.launch") :])
    parsed = parse_args()
    assert json.loads(base64.urlsafe_b64decode(parsed.world_info)) == {"localhost": ["4", "6"]}
    assert (parsed.master_port, parsed.training_script) == (29511, "smdt.train")
    assert parsed.training_script_args == rank[2:]
    assert rank[:4] == ["--module", "smdt.train", "--config", "run.yaml"]
    assert value(rank, "--deepspeed_config") == "zero2.json"
    assert rank[-2:] == ["run.seed=3", "schedule.length=20 steps"]


@pytest.mark.parametrize(
    ("has_gpu", "visible", "devices"),
    [
        (True, None, ["0", "1"]),
        (True, "2,3,5", ["2", "3"]),
        (True, "GPU-1a,MIG-2b", ["GPU-1a", "MIG-2b"]),
        (False, "", ["-1", "-1"]),
        (False, None, ["-1", "-1"]),
    ],
)
def test_ranks_get_the_gpus_that_the_user_made_visible(has_gpu, visible, devices):
    assert devices_of(2, has_gpu, visible) == devices


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


def pdsh_rewrites(text, host="node-7", number=3):
    """What pdsh makes of a word of the remote command line; test_pdsh.py asks the real one."""
    kept = {"%h": host, "%u": "root", "%n": str(number), "%%": "%"}
    return re.sub("%[hun%]", lambda found: kept[found[0]], text)


def as_a_host_runs_it(plan):
    """The shell's command line on a host, from DeepSpeed's own pdsh runner."""
    from deepspeed.launcher.multinode_runner import PDSHRunner
    from deepspeed.launcher.runner import parse_args

    argv = cluster_command(plan)
    args = parse_args(argv[argv.index("deepspeed.launcher.runner") + 1 :])
    command, _, _ = PDSHRunner(args, "e30=").get_cmd({}, {"a": [0]})
    words = command[command.index("a") + 1 :]
    return " ".join(map(pdsh_rewrites, words))  # as ssh joins them


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    """A folder whose `python` prints its arguments, each ended by a zero byte."""
    program = tmp_path_factory.mktemp("recorder") / "python"
    program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    program.chmod(0o755)
    return program


ODD = st.text(st.sampled_from("ab =.$`'\"\\;&|()<>*?~#!{}[]%hnu1é日"), min_size=1, max_size=20)


@pytest.mark.slow
@given(arguments=st.lists(ODD, max_size=4), folder=ODD.filter(lambda name: "/" not in name))
@example(arguments=["run.name=%h", "x=%%n", "$(id)", "`id`", "a b%n$c", "%", "% %"], folder="100%u")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_rank_gets_the_arguments_that_were_asked(arguments, folder, recorder, monkeypatch):
    script = recorder.parent / f"run {folder}" / "environment.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_text(environment_script({"SEEN": "$HOME %h"}))
    monkeypatch.setattr(sys, "executable", str(recorder))
    monkeypatch.chdir("/")
    plan = replace(CLUSTER, arguments=arguments, environment=script)
    done = subprocess.run(
        ["bash", "-c", f"{as_a_host_runs_it(plan)}; printf '%s' \"$SEEN\""],
        capture_output=True,
        text=True,
        check=True,
    )
    *words, seen = done.stdout.split("\0")
    assert words[words.index("smdt.train") + 1 :] == arguments
    assert "--node_rank=3" in words
    assert (seen, done.stderr) == ("$HOME %h", "")


@pytest.mark.parametrize("argument", ["a\nb", "a\rb", "a\x00", "a\x1b[0m", "a\udcff", "a\u2028b"])
def test_what_no_command_line_can_hold_is_refused(argument):
    with pytest.raises(InputError, match="which no command line of a host can hold"):
        cluster_command(replace(CLUSTER, arguments=[argument]))
    with pytest.raises(InputError, match="the run folder"):
        cluster_command(replace(CLUSTER, environment=Path(argument) / "environment.sh"))


@pytest.mark.parametrize("path", ["/a b", "/a;b", "/100%", "/a%hb", "/$x", "/it's", '/"', "/a\nb",
                                  "/(x)", "/a*", "/a&b", "/a\\b", "/[1]", "/#a"])  # fmt: skip
def test_a_path_that_deepspeed_would_hand_on_unquoted_is_refused(path):
    with pytest.raises(InputError, match="working folder"):
        check_working_folder(Path(path), "/usr/bin/python")
    with pytest.raises(InputError, match="Python interpreter"):
        check_working_folder(Path("/work"), path)


@given(st.text(st.characters(codec="ascii"), min_size=1).filter(lambda text: "\0" not in text))
@settings(max_examples=30)
def test_a_working_folder_that_is_taken_is_one_word_of_a_shell(text):
    path = f"/{text}"
    try:
        check_working_folder(Path(path), "/usr/bin/python")
    except InputError:
        return
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {pdsh_rewrites(str(Path(path)))}"],
        capture_output=True,
        check=True,
    )
    assert shown.stdout.decode() == f"{Path(path)}\0"


def test_ordinary_folders_are_taken():
    check_working_folder(Path("/home/rené/smdt-2.1_x+y@z=1,2:3/~old"), sys.executable)


@pytest.mark.parametrize("address", ["-x", "a;reboot", "a b", "$(id)", "%h", "a\n", "me@a", ""])
def test_a_meeting_point_is_a_host_or_an_address(address):
    with pytest.raises(InputError, match="--master-addr"):
        check_address(address)


def test_addresses_of_meeting_points():
    for address in (None, "node-0", "ib0.a", "10.0.0.1", "fd00::1"):
        check_address(address)


@pytest.mark.parametrize(("ranks", "gpus"), [(2, 0), (1, 1), (2, 4)])
def test_ranks_have_a_gpu_each_or_none(ranks, gpus):
    check_gpus(ranks, gpus)


def test_too_few_gpus_are_told_before_cuda_does():
    with pytest.raises(InputError, match=r"--ranks 2.* has 1; set --ranks 1"):
        check_gpus(2, 1)

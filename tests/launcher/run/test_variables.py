"""Variables reach the ranks, and no command line of a process shows their values."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from launcher.run.command import cluster_command
from launcher.run.variables import (
    EXPORTED,
    deepspeed_env_lines,
    environment_script,
    exported_variables,
    masked_exports,
    passed_variables,
)
from tests.launcher.run.test_command import CLUSTER

SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": 'hush "a" $HOME %h `id`',
    "MLFLOW_TRACKING_TOKEN": "hush-token",
    "PYTHONHUSH": "hush\nhush",
    "UCX_HUSH": "hush;hush",
    "MV2_HUSH": "",
    "NCCL_HUSH": "hush'hush",
}


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
    for name in ("A=1", "É", "A\n"):
        with pytest.raises(InputError, match="is not a variable name"):
            passed_variables([name], {"A": "1", name: "1"})


@pytest.mark.slow
def test_the_variables_are_those_that_deepspeed_writes_into_command_lines():
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher.runner import EXPORT_ENVS

    theirs = {*EXPORT_ENVS, *CUDA_Accelerator.export_envs(object.__new__(CUDA_Accelerator))}
    assert set(EXPORTED) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("pdsh", ["stand-in", "pdsh"])
def test_a_host_gets_the_variables_and_ps_sees_none(tmp_path, monkeypatch, pdsh):
    """DeepSpeed's launcher for real; pdsh and ssh run what they are given on this machine."""
    if pdsh == "pdsh" and shutil.which("pdsh") is None:
        pytest.skip("no pdsh")
    programs, run = tmp_path / "bin", tmp_path / "my 100%h run"
    programs.mkdir()
    run.mkdir()
    seen, got = tmp_path / "argv", tmp_path / "environ"
    # Each writes its own argv as `ps` shows it.
    record = f"cat /proc/$$/cmdline >> {seen}; echo >> {seen}\n"
    remote = 'command="$*"; command="${command#*source}"; exec bash -c "source$command"\n'
    for name in ("ssh", *(["pdsh"] if pdsh == "stand-in" else [])):
        text = f"#!/bin/bash\n{record}{remote}"
        if name == "pdsh":  # it halves %% and numbers the host
            text = text.replace(
                "exec", 'command="${command//%%/%}"; command="${command//%n/0}"; exec'
            )
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "recorder.py").write_text(
        f"import os, shutil\nshutil.copyfile('/proc/self/environ', {str(got)!r})\n"
    )
    environment = {
        **os.environ,
        **SECRETS,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}:/hush path/x",
        "DS_ENV_FILE": str(run / "masks"),
        "DS_ACCELERATOR": "cpu",
    }
    monkeypatch.chdir(tmp_path)
    exported = exported_variables(environment, tmp_path)
    (run / "environment.sh").write_text(environment_script({**exported, "DS_ACCELERATOR": "cpu"}))
    (run / "masks").write_text(masked_exports(exported))
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    plan = replace(
        CLUSTER,
        module="recorder",
        arguments=[],
        hostfile=tmp_path / "hosts",
        hosts={"localhost": (0,)},
        environment=run / "environment.sh",
    )
    done = subprocess.run(
        cluster_command(plan), env=environment, capture_output=True, text=True, check=False
    )
    assert got.exists(), done.stderr
    there = dict(line.split("=", 1) for line in got.read_text().split("\0") if "=" in line)
    assert {name: there[name] for name in SECRETS} == SECRETS
    assert there["PYTHONPATH"] == f"{tmp_path}:{tmp_path}:/hush path/x"
    shown = seen.read_text()
    assert "MLFLOW_TRACKING_PASSWORD" in shown
    assert "hush" not in shown.lower().replace("pythonhush", "").replace("_hush", "")
    assert sys.executable in shown


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("A = a b ", "a b"),
        ("A=$HOST/x", "h/x"),
        ('A="b"', '"b"'),
        ("A=a=`b`\\", "a=`b`\\"),
    ],
)
def test_deepspeeds_own_file_of_variables(line, value):
    lines = deepspeed_env_lines(f"\n{line}\n", Path(".deepspeed_env"))
    script = environment_script({"HOST": "h"}, lines)
    shown = subprocess.run(
        ["bash", "-c", f'{script}printf "%s" "$A"'], capture_output=True, text=True, check=True
    )
    assert (shown.stdout, shown.stderr) == (value, "")


def test_a_wrong_line_of_that_file_is_named():
    with pytest.raises(InputError, match=r"\.deepspeed_env, line 2: 'export A' is not NAME=VALUE"):
        deepspeed_env_lines("B=1\nexport A=1\n", Path(".deepspeed_env"))

import json
import sys
from pathlib import Path

import pytest
import torch

from data_shards.base.errors import UserError
from smdt.cli import doctor
from smdt.cli.doctor import Finding, capability_fix, driver_fix, findings, run_doctor

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100a", "sm_120"]


def subject(name: str) -> Finding:
    (found,) = (finding for finding in findings() if finding.subject == name)
    return found


def test_what_is_needed_and_missing_fails_with_its_name(monkeypatch):
    found = [Finding("torch", "2"), Finding("dali", "not installed", "install the lock")]
    monkeypatch.setattr(doctor, "findings", lambda: found)
    with pytest.raises(UserError, match="dali"):
        run_doctor(None)


def test_what_is_only_useful_does_not_fail(monkeypatch, capsys):
    found = [Finding("C++ compiler", "none", "install g++", needed=False)]
    monkeypatch.setattr(doctor, "findings", lambda: found)
    run_doctor(None)
    assert "install g++" in capsys.readouterr().out


def test_nothing_is_missing_where_the_tests_run(tmp_path):
    run_doctor(tmp_path / "doctor.json")
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert {"Python", "torch", "NVIDIA driver", "decoding", "ssh, pdsh"} <= {
        finding["subject"] for finding in found
    }


def test_images_are_really_decoded(monkeypatch):
    assert "DALI, on the CPU" in subject("decoding").found
    monkeypatch.setitem(sys.modules, "nvidia.dali.pipeline", None)
    broken = subject("decoding")
    assert broken.needed
    assert broken.cure
    assert "nvidia.dali.pipeline" in broken.found


def test_without_a_gpu_all_is_fine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = doctor._accelerators()
    assert "which is fine" in found.found
    assert "on the CPU, ranks over gloo" in found.found
    assert not found.cure


def test_tools_are_looked_for_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "openssh-client" in subject("ssh, pdsh").cure
    assert "install g++" in subject("C++ compiler").cure
    for tool in ("ssh", "pdsh", "c++"):
        (tmp_path / tool).touch(mode=0o755)
    assert subject("ssh, pdsh").cure == ""
    assert subject("C++ compiler").found == f"{tmp_path}/c++"


def test_shared_memory_of_a_container_is_too_small(monkeypatch):
    monkeypatch.setattr(doctor, "SHARED_MEMORY", Path("/nowhere"))
    assert "--shm-size" in doctor._shared_memory().cure


@pytest.mark.parametrize(
    ("supported", "built_for", "fits"),
    [(13000, "13.0", True), (13000, "13.2", True), (14010, "13.0", True), (12090, "13.0", False)],
)
def test_a_driver_runs_the_major_versions_that_it_knows(supported, built_for, fits):
    assert (driver_fix(supported, built_for) == "") == fits


@pytest.mark.parametrize(("capability", "fits"), [((9, 0), True), ((7, 5), True), ((7, 0), False)])
def test_a_gpu_needs_kernels(capability, fits):
    cure = capability_fix(capability, ARCHITECTURES)
    assert (cure == "") == fits
    assert fits or "7.5 or newer" in cure


def test_the_installed_pytorch_says_what_it_was_built_for():
    """`get_arch_list`, on which the check relies, is empty without a GPU before PyTorch 2.12."""
    architectures = torch._C._cuda_getArchFlags().split()
    assert torch.cuda.get_arch_list() in (architectures, [])
    assert driver_fix(13000, torch.version.cuda) == ""
    assert capability_fix((9, 0), architectures) == ""
    assert capability_fix((7, 0), architectures)

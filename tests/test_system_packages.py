"""What tests need of the system: skipped with its packages' names, failed in CI, summed up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import system_packages
from tests.conftest import pytest_terminal_summary
from tests.system_packages import FULL_PACKAGES, PACKAGES, lacking, main, require


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(system_packages, "find", lambda program: None)


def test_programs_of_one_package_are_named_once(nothing_installed):
    assert lacking("promtool", "prometheus", "pdsh").endswith("apt-get install pdsh prometheus")


def test_what_is_missing_is_skipped_by_a_user_and_fails_in_ci(nothing_installed, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        require("chromium")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"in CI nothing may be missing: .*chromium"):
        require("chromium")


def test_what_needs_root_says_so(monkeypatch):
    monkeypatch.setattr(system_packages, "find", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert lacking("ip", root=True) == "needs root"
    assert lacking("ip") == ""


def test_the_closing_line_names_every_package_of_the_skipped_tests(nothing_installed):
    reasons = [lacking("pdsh", "sshd"), lacking("chromium"), "no GPU"]
    skipped = [SimpleNamespace(longrepr=("test_x.py", 7, f"Skipped: {why}")) for why in reasons]
    lines = []
    pytest_terminal_summary(SimpleNamespace(stats={"skipped": skipped}, write_line=lines.append))
    assert lines == ["To run the skipped tests: apt-get install chromium openssh-server pdsh"]


def test_the_installer_runs_where_nothing_of_ours_is_installed(tmp_path):
    """Isolated from the environment and the repository."""
    script = system_packages.__file__
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({script!r})"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_root_the_installer_installs_nothing(nothing_installed, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: pytest.fail("started"))
    assert main(["--full"]) == 0
    said = capsys.readouterr().out
    assert all(package in said for package in {**PACKAGES, **FULL_PACKAGES}.values())


def test_make_finds_the_only_interpreter_behind_a_shim_that_starts_nothing(tmp_path):
    shim = tmp_path / "python3"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / version).symlink_to(os.path.realpath(sys.executable))
    done = subprocess.run(
        [shutil.which("make"), "system-packages"],
        cwd=Path(__file__).parent.parent,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "system packages will be skipped" in done.stdout

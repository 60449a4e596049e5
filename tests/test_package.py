"""What is published: one version, a wheel that holds all it needs, ranges of what it needs."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from data_shards.base.errors import run
from smdt.cli.app import app
from smdt.data.pipeline import DALI
from smdt.training.deepspeed.settings import DEEPSPEED

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_shards", "launcher", "smdt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_newest_release_of_the_change_log():
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == PROJECT["version"]


def test_smdt_says_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        run(app, ["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"smdt {version('smdt')}\n"


def test_what_errors_say_to_install_is_what_the_wheel_needs():
    needed = [each for each in PROJECT["dependencies"] if "sys_platform" in each]
    assert needed == [f"{each}; sys_platform == 'linux'" for each in (DEEPSPEED, DALI)]
    assert not [each for each in PROJECT["dependencies"] if re.search(r"[^=]==\d", each)]


@pytest.mark.slow
def test_the_wheel_is_pure_and_holds_the_packages_with_their_files(tmp_path):
    source = tmp_path / "source"
    for package in (*PACKAGES, "tests", "monitoring", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    expected = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file()
    }
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"smdt-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= held

"""GitHub's workflows: what they test, what they may do, and when they refuse to release."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.distributed.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in (ROOT / ".github/workflows").glob("*.yml")
}


@pytest.mark.parametrize("name", ["audit", "ci", "release"])
def test_a_workflow_may_only_read_and_names_versions_of_its_actions(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job in WORKFLOWS[name]["jobs"].values():
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


def test_ci_runs_what_every_hand_over_runs_with_pythons_that_are_supported():
    (job,) = WORKFLOWS["ci"]["jobs"].values()
    assert any(step.get("run", "").endswith(" .ci/run") for step in job["steps"])
    pythons = {
        f"Programming Language :: Python :: {each}" for each in job["strategy"]["matrix"]["python"]
    }
    assert pythons <= {*PROJECT["classifiers"]}


def test_a_tag_that_is_not_the_version_is_not_released(tmp_path):
    (check,) = [
        step["run"]
        for step in WORKFLOWS["release"]["jobs"]["package"]["steps"]
        if step.get("name", "").startswith("Check that the tag")
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def release(tag: str) -> subprocess.CompletedProcess[str]:
        names = {"GITHUB_REF_NAME": tag, "RUNNER_TEMP": str(tmp_path), "PATH": path}
        command = ["bash", "-e", "-c", check]
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | names, capture_output=True, text=True, check=False
        )

    assert release(f"v{PROJECT['version']}").returncode == 0
    changes = (tmp_path / "changes.md").read_text()
    assert changes.strip()
    assert "\n## " not in changes
    assert changes in (ROOT / "CHANGELOG.md").read_text()
    refused = release("v99.0.0")
    assert refused.returncode == 1
    assert f"tag v{PROJECT['version']}" in refused.stdout

import subprocess

from smdt.training.environment import versions
from tests.distributed.runs import ROOT

IMAGE_COMMIT = "0123456789abcdef"


def test_the_commit_is_the_clones(monkeypatch):
    monkeypatch.setenv("SMDT_COMMIT", IMAGE_COMMIT)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    assert versions()["commit"] == head.strip()


def test_a_machine_without_git_knows_only_the_commit_that_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SMDT_COMMIT", raising=False)
    assert versions()["commit"] is None
    monkeypatch.setenv("SMDT_COMMIT", IMAGE_COMMIT)
    assert versions()["commit"] == IMAGE_COMMIT

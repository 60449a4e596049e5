import importlib.util
import shutil
import subprocess

from smdt.training.checkpoints.run_environment import versions
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


def test_a_copy_installed_inside_a_foreign_clone_is_not_of_its_commit(monkeypatch, tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet", tmp_path], check=True)
    subprocess.run(
        [*git, "commit", "--quiet", "--allow-empty", "--message=a"], cwd=tmp_path, check=True
    )
    installed = tmp_path / "site-packages" / "environment.py"
    installed.parent.mkdir()
    shutil.copyfile(ROOT / "smdt/training/checkpoints/run_environment.py", installed)
    specification = importlib.util.spec_from_file_location("installed_copy", installed)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.delenv("SMDT_COMMIT", raising=False)
    assert module.versions()["commit"] is None

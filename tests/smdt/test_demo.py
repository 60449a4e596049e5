import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from smdt import config as configuration
from smdt.cli import app
from smdt.demo import FULL, QUICK, commands

OUT = Path("/tmp/a-demo")
ROOT = Path(__file__).parent.parent.parent


def parsed(command):
    """What typer makes of a command line: its name and its parameters."""
    group = typer.main.get_command(app)
    words = list(command)
    context = group.make_context("smdt", words, resilient_parsing=True)
    name = words.pop(0)
    subcommand = group.get_command(context, name)
    if name == "shards":
        name = words.pop(0)
        subcommand = subcommand.get_command(context, name)
    return name, subcommand.make_context(name, words).params


@pytest.mark.parametrize("budget", [FULL, QUICK], ids=["full", "quick"])
def test_every_command_is_one_that_a_user_can_type(budget):
    steps = [parsed(command) for command in commands(OUT, budget)]
    names = [name for name, _ in steps]
    assert names.count("train") == 4
    made: set[str] = set()
    for name, parameters in steps:
        if name == "train":
            config = configuration.load(parameters["config"], parameters["overrides"])
            configuration.check_ranks(config, parameters["ranks"])
            configuration.load_deepspeed(parameters["deepspeed_config"])
            needed, makes = {config.data.shards}, {config.run.out}
        else:
            needed = {str(parameters[key]) for key in NEEDS[name]}
            makes = {str(parameters["out"])} if "out" in parameters else set()
        assert needed <= made, "made by a command before"
        assert not makes & made, "nothing is made twice"
        made |= makes


NEEDS = {
    "world": (),
    "segment": ("shards", "checkpoint"),
    "align": ("shards", "checkpoint"),
    "evaluate": ("shards", "trained"),
    "report": ("folder",),
}


def test_each_training_is_evaluated_and_reported_where_its_report_looks():
    steps = [parsed(command) for command in commands(OUT, FULL)]
    shown = [str(parameters["folder"]) for name, parameters in steps if name == "report"]
    scored = {
        str(parameters["trained"]): parameters for name, parameters in steps if name == "evaluate"
    }
    assert shown == list(scored)
    for run, parameters in scored.items():
        assert parameters["json_file"] == Path(run) / "evaluation.json"
        assert parameters["references_file"] == Path(run) / "references.json"


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_the_quick_demo_beats_what_learns_nothing_at_every_step(tmp_path):
    demo = [sys.executable, "-m", "smdt.cli", "demo", "--quick", "--out", str(tmp_path)]
    subprocess.run(demo, cwd=ROOT, check=True)
    out = tmp_path / "quick"

    def scores(run):
        folder = out / run
        references = json.loads((folder / "references.json").read_text())
        return json.loads((folder / "evaluation.json").read_text())["scores"], references

    for run in ("run", "aligned-run"):
        ours, references = scores(run)
        assert ours["R@10"] > 2 * references["chance"]["R@10"], run
        assert (out / run / "report.html").exists()
    ours, references = scores("alignment")
    for image in ("mapped aerial image", "mean training image"):
        assert ours["SSIM"] > references[image]["SSIM"]
        assert ours["PSNR"] > references[image]["PSNR"]
    assert ours["mIoU"] > references["most common class of each pixel"]["mIoU"]
    assert ours["deviation"] > 0.05, "one image for all"

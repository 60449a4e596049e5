import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from smdt.cli.app import app
from smdt.cli.demo import (
    AZIMUTH_DEG,
    FOV_DEG,
    NORMAL,
    PHOTO,
    QUICK,
    Machine,
    outcome,
    paper_commands,
    retrieval_commands,
    seconds_left,
    this_machine,
    write_photo,
)
from smdt.data.split import Split
from smdt.stages import config as configuration
from tests.distributed.runs import processes_of

OUT = Path("/tmp/a-demo")
MACHINE = Machine(2, ("precision=fp32",))
ROOT = Path(__file__).parents[3]


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


def all_commands(budget):
    commands = [*retrieval_commands(OUT, budget, MACHINE), *paper_commands(OUT, budget, MACHINE)]
    return [parsed(command) for _, command in commands]


@pytest.mark.parametrize("budget", [NORMAL, QUICK], ids=["normal", "quick"])
def test_every_command_is_one_that_a_user_can_type(budget):
    steps = all_commands(budget)
    assert len(budget.seconds) == len(retrieval_commands(OUT, budget, MACHINE))
    assert len(budget.paper_seconds) == len(paper_commands(OUT, budget, MACHINE))
    names = [name for name, _ in steps]
    assert names.count("train") == 4
    made = {str(OUT / PHOTO)}
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
    "embed": ("shards", "trained"),
    "locate": ("photo", "gallery"),
    "segment": ("shards", "checkpoint"),
    "align": ("shards", "checkpoint"),
    "evaluate": ("shards", "trained"),
    "report": ("folder",),
}


def test_each_training_is_evaluated_and_reported_where_its_report_looks():
    steps = all_commands(NORMAL)
    shown = [str(parameters["folder"]) for name, parameters in steps if name == "report"]
    scored = {
        str(parameters["trained"]): parameters for name, parameters in steps if name == "evaluate"
    }
    assert shown == list(scored)
    for run, parameters in scored.items():
        assert parameters["json_file"] == Path(run) / "evaluation.json"
        assert parameters["references_file"] == Path(run) / "references.json"


def test_the_photo_is_a_half_of_an_unseen_panorama(world, tmp_path):
    said = write_photo(world, tmp_path / PHOTO)
    split = Split.open(str(world), "val")
    assert split.source_id(0) in said
    offset, size = (int(split.column(f"ground_{what}")[0]) for what in ("offset", "size"))
    with split.tar(0).open("rb") as tar:
        tar.seek(offset)
        panorama = np.array(Image.open(io.BytesIO(tar.read(size))))
    photo = np.array(Image.open(tmp_path / PHOTO))
    # 128 columns for 360 degrees; the middle one of a photo of 64 is its 33rd
    middle = 64 + round(AZIMUTH_DEG * 128 / 360)
    columns = [(middle - 32 + column) % 128 for column in range(64)]
    assert FOV_DEG == 180
    np.testing.assert_array_equal(photo, panorama[:, columns])


@pytest.mark.parametrize(
    ("gpus", "slow_bf16", "ranks", "overrides"),
    [
        (0, True, 2, ("precision=fp32",)),
        (0, False, 2, ()),
        (1, True, 1, ()),  # a rank takes a GPU for itself
        (8, True, 2, ()),
    ],
)
def test_trainings_suit_the_machine(monkeypatch, gpus, slow_bf16, ranks, overrides):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("smdt.cli.demo.emulates_bf16", lambda: slow_bf16)
    assert this_machine() == Machine(ranks, overrides)


def test_what_is_left_follows_the_speed_of_this_machine():
    assert seconds_left([60, 30], []) == 90
    assert seconds_left([60, 30], [120.0]) == 60
    assert seconds_left([60, 30], [100.0, 50.0]) == 0
    assert seconds_left([60, 30, 10], [2.0, 60.0]) == 20, "the first had been done before"


def test_the_outcome_has_scores_of_each_model_beside_chance(tmp_path):
    for run, scores in {"run": {"R@1": 0.974}, "alignment": {"SSIM": 0.5, "PSNR": 16.0}}.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "evaluation.json").write_text(json.dumps({"scores": scores}))
        (tmp_path / run / "references.json").write_text('{"chance": {"R@1": 0.002}}')
    (tmp_path / "aligned-run").symlink_to(tmp_path / "run")
    retrieval = "R@1 97.40% (by chance 0.20%)"
    assert [line.split(" on an")[0] for line in outcome(tmp_path, full=True)] == [
        f"Retrieval: {retrieval}",
        "Generated ground images: SSIM 0.5000, PSNR 16.00 dB",
        f"Retrieval on them: {retrieval}",
    ]
    assert len(list(outcome(tmp_path, full=False))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_command_that_runs_and_keeps_what_is_finished(tmp_path, number):
    out = tmp_path / "demo"
    demo = [sys.executable, "-m", "smdt.cli", "demo", "--out", str(out)]
    with subprocess.Popen(demo, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not list(out.glob("shards/train/*.parquet")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert said.splitlines()[-1] == "The demo was stopped: start it again to resume."
    assert "Traceback" not in said
    assert processes_of(out / "shards") == {}
    assert list(out.glob("shards/train/*.parquet"))


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_the_quick_demo_beats_what_learns_nothing_at_every_step(tmp_path):
    demo = [
        sys.executable,
        "-m",
        "smdt.cli",
        "demo",
        "--quick",
        "--full",
        "--out",
        str(tmp_path),
    ]
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

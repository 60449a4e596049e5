import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from data_shards.base.errors import DataError
from smdt.data.split import Split
from smdt.report.page import write_report
from smdt.report.pictures import Pictures
from smdt.stages import config as configuration
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.registry import references
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from tests.system_packages import require


@pytest.fixture
def run(world, tmp_path) -> RunFolder:
    """A run folder as a short training leaves it."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.config.write_text(
        f"""
        stage: retrieval
        run: {{name: a-run, out: {run.root}}}
        data: {{shards: {world}}}
        geometry: {{panorama_size: [32, 128]}}
        model: {{width: 32, layers: 1}}
        """
    )
    config = configuration.load(run.config)
    torch.manual_seed(0)
    evaluation = evaluate_stage(config, RetrievalStage(config), str(world), "val")
    scores = dict(evaluation.scores)
    write_json(run.evaluation, {"step": 30, "scores": scores, **evaluation.details})
    for step in range(1, 31):
        run.append_metrics(
            {
                "step": step,
                "losses": {"loss": 1 / step},
                "learning_rate": {"two_tower": 1e-3},
                "gradient_norm": {"two_tower": 1.0},
                "step_seconds": 0.5,
                "data_wait_seconds": 0.05,
                "collective_wait_seconds": 0.1,
            }
        )
    run.append_metrics({"step": 30, "scores": scores})
    run.note("started", step=0, ranks=2)
    run.note("saved", step=10, seconds=1.5, bytes=1000)
    run.note("started", step=10, ranks=1)
    run.note("saved", step=20, seconds=0.5, bytes=1000)
    run.note("saved", step=30, seconds=0.5, bytes=1000)
    run.note("done", step=30)
    run.write_state("done", 30)
    write_json(run.references, references(config, str(world), "val"))
    return run


class Elements(HTMLParser):
    """Counts tags and collects what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.true_tiles = 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "href") if name in values]
        self.true_tiles += values.get("class") == "true"
        if tag == "h2":
            self.headings.append(values["id"])


@pytest.mark.slow
def test_the_page_shows_everything_and_needs_no_network(run):
    page = write_report(run.root).read_text()
    elements = Elements()
    elements.feed(page)
    assert elements.headings == [
        *("scores", "curves", "time", "outcomes", "best-retrievals", "worst-retrievals"),
        *("inputs", "data", "checkpoints", "configuration"),
    ]
    assert all(source.startswith("data:image/jpeg;base64,") for source in elements.sources)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert elements.true_tiles == 16  # each of 8 best and 8 worst has its true tile marked
    assert page.count("<svg") == 10
    assert "killed, or its host went away" in page
    assert "done at step 30" in page
    assert "2.5 s, 3 times" in page
    for row in ("this run", "chance", "nearest mean colours", "the model before training"):
        assert f"<td>{row}</td>" in page
    assert "10.0%" in page  # of the step time was waiting


@pytest.mark.slow
def test_a_browser_opens_the_page(run, tmp_path):
    require("chromium")
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    output = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    page = write_report(run.root).as_uri()
    subprocess.run(
        ["chromium", *flags, *quiet, *output, "--window-size=1100,6000", page],
        check=True,
        capture_output=True,
        timeout=120,
    )
    picture = Image.open(shot).convert("RGB")
    assert picture.size == (1100, 6000)
    colours = picture.getcolors(maxcolors=1100 * 6000)
    assert len(colours) > 5000, "pictures of tiles and panoramas have many colours"


def test_a_run_that_goes_on_is_as_far_as_its_last_step(run):
    run.write_state("running", 0)  # what it says until it ends
    assert "running · step 30 ·" in write_report(run.root).read_text()


def test_a_run_that_has_only_begun_has_a_page(run):
    for file in (run.evaluation, run.metrics, run.references):
        file.unlink()
    page = write_report(run.root).read_text()
    assert "not evaluated yet" in page


def test_a_damaged_sample_on_the_page_is_one_sentence(world, tmp_path):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    split = Split.open(copy, "val")
    offset, size = (int(split.column(f"aerial_{name}")[3]) for name in ("offset", "size"))
    with split.tar(3).open("r+b") as tar:
        tar.seek(offset + size // 2)
        tar.write(bytes(8))
    pictures = Pictures(split)
    assert pictures.source(2, "aerial").startswith("data:image/jpeg")
    with pytest.raises(DataError, match=r"fail their checksum: run `smdt shards verify"):
        pictures.source(3, "aerial")

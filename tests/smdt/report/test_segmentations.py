import base64
import io

import numpy as np
import pytest
import yaml
from PIL import Image

from data_shards.format.classes import PALETTE
from smdt.data.split import Split
from smdt.report.page import write_report
from smdt.report.pictures import Pictures
from smdt.report.segmentations import segmentations
from smdt.stages import config as configuration
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from tests.checkpoints import save_untrained
from tests.distributed.runs import SEGMENTATION


@pytest.fixture
def run(world, tmp_path) -> RunFolder:
    """A segmenter's run folder, with one checkpoint."""
    run = RunFolder(tmp_path / "run")
    run.create()
    content = {key: value for key, value in SEGMENTATION.items() if value is not None}
    content |= {"run": {"name": "a-run", "out": str(run.root)}, "data": {"shards": str(world)}}
    run.config.write_text(yaml.safe_dump(content))
    save_untrained(checkpoint.folder_of(run.checkpoints, 3), configuration.load(run.config))
    scores = {"mIoU": 0.25, "IoU road": 0.5}
    found = {"scores": scores, "split": "val", "shards": str(world), "samples": 24}
    write_json(run.evaluation, {"step": 3, **found})
    return run


def test_class_maps_are_shown_in_the_colours_of_their_classes(run, world):
    (row,) = segmentations(Pictures(Split.open(world, "val")), run.root, [5])
    for kind in ("predicted", "true"):
        content = base64.b64decode(row[kind].partition(",")[2])
        pixels = np.array(Image.open(io.BytesIO(content))).reshape(-1, 1, 3).astype(int)
        nearest = np.abs(pixels - PALETTE[[0, 1, 2, 3, 4, 5, 255]]).sum(axis=2).min(axis=1)
        assert np.median(nearest) < 20, "but for what JPEG does"


def test_the_page_of_a_segmenter_shows_panoramas_and_their_class_maps(run):
    page = write_report(run.root).read_text()
    assert page.count(">predicted<") == 8
    assert "val (24 samples)" in page
    assert "25.00%" in page
    assert "step-00000003" in page

import base64
import io

import numpy as np
import pytest
from PIL import Image

from data_shards.format.classes import PALETTE
from smdt.data.split import Split
from smdt.report.alignments import alignments
from smdt.report.page import spread, write_report
from smdt.report.pictures import Pictures
from smdt.stages import config as configuration
from smdt.training.checkpoints import checkpoint
from smdt.training.checkpoints.run_folder import RunFolder, write_json
from tests.checkpoints import save_untrained


@pytest.fixture
def run(world, tmp_path) -> RunFolder:
    """A run folder as a short training leaves it, with one checkpoint's weights."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.config.write_text(
        f"""
        stage: alignment
        run: {{name: a-run, out: {run.root}}}
        data: {{shards: {world}}}
        geometry: {{panorama_size: [32, 128]}}
        model: {{generator_width: 2, discriminator_width: 2}}
        """
    )
    config = configuration.load(run.config)
    save_untrained(checkpoint.folder_of(run.checkpoints, 3), config)
    for step in (1, 2, 3):
        run.append_metrics(
            {
                "step": step,
                "losses": {"loss": 80 / step, "discriminators": 1.0, "l1_image": 0.3},
                "learning_rate": {"generators": 1e-3, "discriminators": 1e-3},
                "gradient_norm": {"generators": float("nan"), "discriminators": 1.0},
                "step_seconds": 0.5,
                "data_wait_seconds": 0.05,
                "collective_wait_seconds": 0.1,
            }
        )
    scores = {"SSIM": 0.31, "PSNR": 12.5, "mIoU": 0.5}
    run.append_metrics({"step": 3, "scores": scores})
    write_json(
        run.evaluation,
        {"step": 3, "scores": scores, "split": "val", "shards": str(world), "pairs": 24},
    )
    write_json(run.references, {"mean training image": {"SSIM": 0.2, "PSNR": 11.0}})
    return run


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.partition(",")[2])
    return np.array(Image.open(io.BytesIO(content)))


def test_a_pair_is_shown_with_what_was_made_of_it_and_what_is_true(run):
    config = configuration.load(run.config)
    split = Split.open(config.data.shards, "val")
    (row,) = alignments(Pictures(split), run.root, [5])
    assert row.pop("name") == split.source_id(5)
    shapes = {name: decoded(uri).shape for name, uri in row.items()}
    assert shapes.pop("aerial") == (96, 96, 3)
    assert set(shapes.values()) == {(32, 128, 3)}
    true = decoded(row["segmentation"]).reshape(-1, 1, 3).astype(int)
    nearest = np.abs(true - PALETTE[[0, 1, 2, 3, 4, 5, 255]]).sum(axis=2).min(axis=1)
    assert np.median(nearest) < 20, "the colours of the palette, but for what JPEG does"


def test_the_page_of_an_alignment_shows_pairs_losses_and_scores_in_their_units(run):
    page = write_report(run.root).read_text()
    assert page.count("generated ground<") == 8
    assert all(f"Loss: {term}" in page for term in ("loss", "discriminators", "l1_image"))
    assert "SSIM on the held-out split" in page
    assert "12.50 dB" in page
    assert "50.00%" in page
    assert "11.00 dB" in page
    assert ">nan<" not in page
    assert '"nan"' not in page


def test_without_a_checkpoint_there_are_no_pictures(run):
    for file in checkpoint.folder_of(run.checkpoints, 3).iterdir():
        file.unlink()
    checkpoint.folder_of(run.checkpoints, 3).rmdir()
    assert "generated ground" not in write_report(run.root).read_text()


@pytest.mark.parametrize(("count", "ids"), [(3, [0, 1, 2]), (24, [0, 3, 6, 9, 12, 15, 18, 21])])
def test_shown_samples_are_spread_over_the_split(count, ids):
    assert spread(count, 8) == ids


def test_no_more_are_shown_than_asked_for():
    assert all(len(spread(count, 8)) <= 8 for count in range(100))

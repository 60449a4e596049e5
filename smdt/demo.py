"""From nothing to recalls on an unseen city: the README's own commands, one after the other."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from PIL import Image
from torch import Tensor

from data_shards.errors import UserError
from data_shards.images import decode_photo
from data_shards.terminal import Terminal
from smdt.data.reader import Reader
from smdt.data.split import Split
from smdt.geometry.photo import cut_photo
from smdt.telemetry.metrics import TrainingMetrics

PHOTO = "photo.png"
FOV_DEG, AZIMUTH_DEG = 90.0, 120.0
"""What the photo shows of a panorama: how wide, and around which direction from its middle."""
TURNS = 12
"""At which the gallery has its places."""
WORLD = ("--seed", "0", "--difficulty", "normal", "--ground-size", "64x256", "--aerial-size", "192")


@dataclass(frozen=True)
class Budget:
    """How much a demo makes and trains.

    Attributes:
        train: pairs of the training cities.
        val: pairs of the unseen city.
        retrieval: length of the training on mapped aerial images.
        segmentation: of the network that makes class maps.
        alignment: of the generators and discriminators.
        aligned_retrieval: of the training on aligned images.
    """

    train: int
    val: int
    retrieval: str
    segmentation: str
    alignment: str
    aligned_retrieval: str


FULL = Budget(2500, 500, "96 epochs", "1 epoch", "1 epoch", "12 epochs")
QUICK = Budget(500, 100, "48 epochs", "1 epoch", "1 epoch", "4 epochs")


def run_demo(out: Path, quick: bool) -> None:
    """Make a world and go through the whole method on it; write the reports.

    What is there already is kept: a demo that was stopped goes on.

    Raises:
        UserError: one of the commands failed.
    """
    console, start = Terminal(), time.monotonic()
    out = out / "quick" if quick else out
    make_world, *others = commands(out, QUICK if quick else FULL)
    _smdt(console, make_world)
    console.print(write_photo(out / "shards", out / PHOTO))
    for command in others:
        _smdt(console, command)
    console.print(f"{out}/*/report.html  ({(time.monotonic() - start) / 60:.1f} minutes)")


def commands(out: Path, budget: Budget) -> Iterator[Sequence[str]]:
    """Yield what follows `smdt` in each command of the demo."""
    world, segmented, aligned, gallery = (
        f"{out / name}" for name in ("shards", "segmented", "aligned", "gallery")
    )
    mixed, segmenter, generators, retrieval = (
        f"{out / name}" for name in ("run", "segmentation", "alignment", "aligned-run")
    )
    size = ("--train", f"{budget.train}", "--val", f"{budget.val}")
    yield ("shards", "world", "--out", world, *size, *WORLD)
    # Retrieval on the mapping alone, of panoramas and of photos.
    yield _train("photos", mixed, world, budget.retrieval)
    yield _evaluate(mixed, world)
    yield ("report", mixed)
    yield ("embed", mixed, "--shards", world, "--out", gallery, "--turns", f"{TURNS}")
    yield ("locate", f"{out / PHOTO}", "--gallery", gallery, "--fov", f"{FOV_DEG:g}")
    # The paper's method: class maps, the dual conditional GAN, retrieval on what it makes.
    yield _train("segmentation", segmenter, world, budget.segmentation)
    yield ("segment", "--shards", world, "--out", segmented, "--checkpoint", segmenter)
    often = "evaluation.every=125 steps"  # for a curve of an epoch
    yield _train("alignment", generators, segmented, budget.alignment, often)
    yield _evaluate(generators, world)  # whose class maps are the true ones
    yield ("report", generators)
    yield ("align", "--shards", segmented, "--out", aligned, "--checkpoint", generators)
    yield _train("retrieval", retrieval, aligned, budget.aligned_retrieval, "aerial=aligned")
    yield _evaluate(retrieval, aligned)
    yield ("report", retrieval)


def write_photo(shards: Path, file: Path) -> str:
    """Write a photo of a place of the unseen city; return what it shows."""
    split = Split.open(f"{shards}", "val")
    photo = unseen_photo(split, 0, AZIMUTH_DEG, FOV_DEG)
    Image.fromarray(photo.numpy()).save(file)
    return f"{file}: {FOV_DEG:g} degrees around {AZIMUTH_DEG:g} of {split.source_id(0)}"


def unseen_photo(split: Split, sample_id: int, azimuth_deg: float, fov_deg: float) -> Tensor:
    """Cut a photo out of a sample's panorama: uint8 [h, w, 3]. See `cut_photo`."""
    reader = Reader(split, TrainingMetrics("", "", 0), Event())
    panorama = torch.from_numpy(decode_photo("ground", reader.read(sample_id, "ground")))
    return cut_photo(panorama, azimuth_deg, fov_deg)


def _train(config: str, run: str, shards: str, length: str, *overrides: str) -> Sequence[str]:
    configuration = ("--config", f"world/{config}")
    deepspeed = ("--deepspeed_config", "zero2", "--ranks", "2")
    own = (f"data.shards={shards}", f"run.out={run}", f"schedule.length={length}")
    return ("train", *configuration, *deepspeed, *own, *overrides)


def _evaluate(run: str, shards: str) -> Sequence[str]:
    files = ("--json", f"{run}/evaluation.json", "--references", f"{run}/references.json")
    return ("evaluate", run, "--shards", shards, *files)


def _smdt(console: Terminal, command: Sequence[str]) -> None:
    """Run one `smdt` command and show it as the user would type it."""
    console.rule("smdt " + " ".join(command), style="dim", align="left")
    done = subprocess.run([sys.executable, "-m", "smdt.cli", *command], check=False)
    if done.returncode != 0:
        raise UserError(f"`smdt {command[0]}` ended with exit code {done.returncode}")

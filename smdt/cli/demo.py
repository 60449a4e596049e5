"""From nothing to a recall on an unseen city: the README's own commands, one after the other."""

import json
import shlex
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

from data_shards.base.errors import Stopped, UserError
from data_shards.base.terminal import Terminal
from data_shards.format.images import decode_photo
from launcher.run.signals import on_stop
from smdt.data.pipeline import require_dali
from smdt.data.reader import Reader
from smdt.data.split import Split
from smdt.evaluation.outcomes import score_text
from smdt.geometry.photo import crop_photo
from smdt.telemetry.metrics import TrainingMetrics
from smdt.training.deepspeed.settings import require_deepspeed
from smdt.training.ranks.cpu import emulates_bf16

PHOTO = "photo.png"
FOV_DEG, AZIMUTH_DEG = 180.0, 120.0
"""What the photo shows of a panorama: how wide, and around which direction from its middle."""
TURNS = 12
"""Number of headings at which the gallery embeds each place."""
WORLD = ("--seed", "0", "--difficulty", "normal", "--ground-size", "64x256", "--aerial-size", "192")


@dataclass(frozen=True)
class Budget:
    """Sizes of a demo, and the time of each of its commands.

    Attributes:
        train: pairs of the training cities.
        val: pairs of the unseen city.
        retrieval: length of the training on mapped aerial images.
        segmentation: of the network that makes class maps.
        alignment: of the generators and discriminators.
        aligned_retrieval: of the training on aligned images.
        seconds: of each command of `retrieval_commands` on two quiet cores.
        paper_seconds: of each of `paper_commands`.
    """

    train: int
    val: int
    retrieval: str
    segmentation: str
    alignment: str
    aligned_retrieval: str
    seconds: Sequence[int]
    paper_seconds: Sequence[int]


NORMAL = Budget(
    *(2000, 400),
    *("24 epochs", "1 epoch", "1 epoch", "12 epochs"),
    seconds=(110, 165, 15, 5, 15, 5),
    paper_seconds=(60, 60, 200, 30, 8, 120, 180, 20, 8),
)
QUICK = Budget(
    *(500, 100),
    *("48 epochs", "1 epoch", "1 epoch", "4 epochs"),
    seconds=(30, 60, 15, 8, 15, 8),
    paper_seconds=(30, 20, 60, 20, 8, 30, 30, 15, 8),
)


@dataclass(frozen=True)
class Machine:
    """Resources of the trainings on a machine.

    Attributes:
        ranks: of each training.
        overrides: of its configuration.
    """

    ranks: int
    overrides: Sequence[str] = ()


def this_machine() -> Machine:
    """Return what suits this machine."""
    gpus = torch.cuda.device_count()
    return Machine(
        ranks=1 if gpus == 1 else 2,  # each needs its own GPU
        overrides=("precision=fp32",) if gpus == 0 and emulates_bf16() else (),
    )


def run_demo(out: Path, *, quick: bool, full: bool) -> None:
    """Make a world, train on it, and say how well an unseen city is recalled.

    Commands keep what they finished before: a demo that was stopped resumes.

    Args:
        out: folder of all that is made; `quick` makes another one in it.
        quick: with a small world and short trainings.
        full: also with the paper's stages.

    Raises:
        InputError: DALI or DeepSpeed is not installed.
        Stopped: on request; what was made is kept.
        UserError: one of the commands failed.
    """
    require_deepspeed()
    require_dali()
    console, start = Terminal(), time.monotonic()
    out, budget = (out / "quick", QUICK) if quick else (out, NORMAL)
    machine = this_machine()
    commands, seconds = retrieval_commands(out, budget, machine), [*budget.seconds]
    if full:
        commands += paper_commands(out, budget, machine)
        seconds += budget.paper_seconds
    took: list[float] = []
    for number, (what, command) in enumerate(commands):
        left = _minutes(seconds_left(seconds, took))
        console.rule(f"{number + 1} of {len(commands)}: {what} ({left} left in all)", align="left")
        if command[0] == "embed":
            console.print(write_photo(out / "shards", out / PHOTO))
        began = time.monotonic()
        _smdt(console, command)
        took.append(time.monotonic() - began)
    console.rule("done", align="left")
    for line in outcome(out, full=full):
        console.print(line, soft_wrap=True)
    console.print(f"It took {_minutes(time.monotonic() - start)}.")
    if not full:
        options = f"{' --quick' if quick else ''} --full"
        console.print(f"`smdt demo{options}` continues with the paper's stages.")


def retrieval_commands(
    out: Path, budget: Budget, machine: Machine
) -> list[tuple[str, Sequence[str]]]:
    """Return what the commands of the demo do, and what follows `smdt` in each (pure)."""
    world, mixed, gallery = (f"{out / name}" for name in ("shards", "run", "gallery"))
    size = ("--train", f"{budget.train}", "--val", f"{budget.val}")
    photo = (f"{out / PHOTO}", "--gallery", gallery, "--fov", f"{FOV_DEG:g}")
    return [
        ("a synthetic world", ("shards", "world", "--out", world, *size, *WORLD)),
        (
            "train retrieval of panoramas and photos",
            _train("photos", mixed, world, machine, budget.retrieval),
        ),
        ("evaluate it on an unseen city", _evaluate(mixed, world)),
        ("write its report", ("report", mixed)),
        (
            "embed the aerial tiles of that city",
            ("embed", mixed, "--shards", world, "--out", gallery, "--turns", f"{TURNS}"),
        ),
        ("locate a photo among them", ("locate", *photo)),
    ]


def paper_commands(out: Path, budget: Budget, machine: Machine) -> list[tuple[str, Sequence[str]]]:
    """Return the same for the paper's stages: class maps, aligned images, retrieval on those."""
    world, segmented, aligned = (f"{out / name}" for name in ("shards", "segmented", "aligned"))
    segmenter, generators, retrieval = (
        f"{out / name}" for name in ("segmentation", "alignment", "aligned-run")
    )
    often = "evaluation.every=125 steps"  # for a curve of an epoch
    on_aligned = (budget.aligned_retrieval, "aerial=aligned")
    return [
        (
            "train segmentation",
            _train("segmentation", segmenter, world, machine, budget.segmentation),
        ),
        (
            "make class maps",
            ("segment", "--shards", world, "--out", segmented, "--checkpoint", segmenter),
        ),
        (
            "train the generators that turn aerial images into ground images",
            _train("alignment", generators, segmented, machine, budget.alignment, often),
        ),
        # The class maps of the world itself are the true ones.
        ("evaluate them on the unseen city", _evaluate(generators, world)),
        ("write their report", ("report", generators)),
        (
            "make aligned images",
            ("align", "--shards", segmented, "--out", aligned, "--checkpoint", generators),
        ),
        (
            "train retrieval on aligned images",
            _train("retrieval", retrieval, aligned, machine, *on_aligned),
        ),
        ("evaluate it on the unseen city", _evaluate(retrieval, aligned)),
        ("write its report", ("report", retrieval)),
    ]


def seconds_left(expected: Sequence[float], took: Sequence[float]) -> float:
    """Estimate how long the commands ahead will take (pure).

    Args:
        expected: seconds that each command takes on two quiet cores.
        took: seconds of those that have ended here. One that took less than a quarter had been done
            before, and says nothing of this machine.
    """
    ended = [pair for pair in zip(expected, took, strict=False) if pair[1] >= pair[0] / 4]
    pace = sum(here for _, here in ended) / sum(there for there, _ in ended) if ended else 1.0
    return sum(expected[len(took) :]) * pace


def outcome(out: Path, *, full: bool) -> Iterator[str]:
    """Yield what came out: the scores on the unseen city, and where the reports are."""
    named = {"run": "Retrieval"}
    if full:
        named |= {"alignment": "Generated ground images", "aligned-run": "Retrieval on them"}
    for folder, model in named.items():
        scores = json.loads((out / folder / "evaluation.json").read_text())["scores"]
        shown = [name for name in ("R@1", "SSIM", "PSNR") if name in scores]
        said = ", ".join(f"{name} {score_text(name, scores[name])}" for name in shown)
        if "R@1" in scores:
            chance = json.loads((out / folder / "references.json").read_text())["chance"]["R@1"]
            said += f" (by chance {score_text('R@1', chance)})"
        yield f"{model}: {said} on an unseen city, {out / folder / 'report.html'}"


def write_photo(shards: Path, file: Path) -> str:
    """Write a photo of a place of the unseen city; return what it shows."""
    split = Split.open(f"{shards}", "val")
    photo = unseen_photo(split, 0, AZIMUTH_DEG, FOV_DEG)
    Image.fromarray(photo.numpy()).save(file)
    return f"{file}: {FOV_DEG:g} degrees around {AZIMUTH_DEG:g} of {split.source_id(0)}"


def unseen_photo(split: Split, sample_id: int, azimuth_deg: float, fov_deg: float) -> Tensor:
    """Cut a photo out of a sample's panorama: uint8 [h, w, 3]. See `crop_photo`."""
    reader = Reader(split, TrainingMetrics("", "", 0), Event())
    panorama = torch.from_numpy(decode_photo("ground", reader.read(sample_id, "ground")))
    return crop_photo(panorama, azimuth_deg, fov_deg)


def _train(
    config: str, run: str, shards: str, machine: Machine, length: str, *overrides: str
) -> Sequence[str]:
    configuration = ("--config", f"world/{config}")
    deepspeed = ("--deepspeed_config", "zero2", "--ranks", f"{machine.ranks}")
    own = (f"data.shards={shards}", f"run.out={run}", f"schedule.length={length}")
    return ("train", *configuration, *deepspeed, *own, *machine.overrides, *overrides)


def _evaluate(run: str, shards: str) -> Sequence[str]:
    files = ("--json", f"{run}/evaluation.json", "--references", f"{run}/references.json")
    return ("evaluate", run, "--shards", shards, *files)


def _smdt(console: Terminal, command: Sequence[str]) -> None:
    """Run one `smdt` command, show it as the user would type it, and pass stop requests on."""
    console.print(f"$ smdt {shlex.join(command)}", soft_wrap=True)
    program = [sys.executable, "-m", "smdt.cli", *command]
    process = subprocess.Popen(program, start_new_session=True)  # only we get a terminal's Ctrl-C
    stopped = False

    def stop(again: bool) -> None:  # noqa: ARG001 (what a second one means, the command knows)
        nonlocal stopped
        stopped = True
        process.terminate()

    with on_stop(stop):
        exit_code = process.wait()
    if stopped:
        raise Stopped("The demo was stopped: start it again to resume.")
    if exit_code != 0:
        raise UserError(
            f"`smdt {command[0]}` ended with exit code {exit_code} and printed the reason "
            "above; to start over, name another folder: smdt demo --out"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"

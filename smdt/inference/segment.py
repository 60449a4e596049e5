"""Class maps of ground panoramas: what `smdt segment` makes, and its entry point on every rank."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from data_shards.console import progress_bar
from data_shards.errors import InputError, run
from data_shards.executor import Advance, no_progress
from data_shards.images import PreparedImage, encode_png
from data_shards.sources.source import JSON
from smdt.data.batch import Batch
from smdt.geometry.view import resize
from smdt.inference.annotate import Annotation, annotate, begin, samples_left
from smdt.inference.annotated_shard import Annotator
from smdt.models.segmenter import Segmenter, class_map, open_folder
from smdt.stages.segmentation import SegmentationStage
from smdt.stages.trained import find_weights, load_stage
from smdt.training import checkpoint
from smdt.training.stopping import die_with_parent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class SegmentationAnnotator(Annotator):
    """Makes `seg.png` from the ground panorama.

    Args:
        segmenter: on `device`.
        image_size: rows and columns that it sees panoramas in; None: as they are.
        model: what it is, for the manifest.
        device: of the network.
    """

    part = "seg"
    views = ("ground",)

    def __init__(
        self,
        segmenter: Segmenter,
        image_size: tuple[int, int] | None,
        model: dict[str, JSON],
        device: torch.device,
    ) -> None:
        self._segmenter = segmenter.to(device).eval()
        self._image_size = image_size
        self._model = model

    @property
    def model(self) -> dict[str, JSON]:
        """Architecture, size of its images, hash of every file."""
        return self._model

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Sequence[PreparedImage]:
        """Segment each panorama; its class map is as large as itself."""
        ground = batch.images["ground"]
        return [
            _encoded(class_map(logits, (image.shape[0], image.shape[1])))
            for image, logits in zip(ground, self._logits(ground), strict=True)
        ]

    def _logits(self, ground: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """[K, h, w] of each panorama."""
        if self._image_size is not None:
            batches = [resize(ground, self._image_size)]
        elif isinstance(ground, Tensor):
            batches = [ground.permute(0, 3, 1, 2)]
        else:
            batches = [image.permute(2, 0, 1).unsqueeze(0) for image in ground]
        return [logits for images in batches for logits in self._segmenter(images)[0]]


def open_annotator(trained: Path, device: torch.device) -> SegmentationAnnotator:
    """Return what segments with a run, a checkpoint of ours, or a Hugging Face folder.

    Raises:
        InputError: it is none of them, or of another stage.
    """
    if (trained / "config.json").is_file():
        segmenter = open_folder(trained)
        files = [trained / "config.json", *sorted(trained.glob("*.safetensors"))]
        model = _described(segmenter, files, None)
        return SegmentationAnnotator(segmenter, None, model, device)
    _, stage = load_stage(trained)
    if not isinstance(stage, SegmentationStage):
        raise InputError(
            f"{trained} is of stage {stage.name!r}: name a checkpoint of the segmentation stage"
        )
    size = stage.image_size
    model = _described(stage.segmenter, [find_weights(trained) / checkpoint.WEIGHTS], size)
    return SegmentationAnnotator(stage.segmenter, size, model, device)


def _described(
    segmenter: Segmenter, files: Sequence[Path], size: tuple[int, int] | None
) -> dict[str, JSON]:
    hashes: dict[str, JSON] = {}
    for path in files:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "architecture": str(segmenter.network.config.model_type),
        "image_size": None if size is None else list(size),
        "sha256": hashes,
    }


def _encoded(classes: Tensor) -> PreparedImage:
    pixels: np.ndarray = classes.cpu().numpy()
    return PreparedImage(encode_png(Image.fromarray(pixels)), "png", *pixels.shape)


def check(job: Annotation, trained: Path) -> None:
    """Say once what is wrong with the input, before every rank finds it; begin the job.

    Raises:
        InputError: as `begin` and `open_annotator`.
    """
    begin(job, open_annotator(trained, torch.device("cpu")))


def segment_rank(job: Annotation, trained: Path, rank: int, world_size: int) -> None:
    """Segment this rank's shards, on its GPU if there is one."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    annotator = open_annotator(trained, device)
    left = samples_left(job, begin(job, annotator), rank, world_size)
    bar: AbstractContextManager[Advance] = nullcontext(no_progress)
    if rank == 0:
        bar = progress_bar("segment" if world_size == 1 else f"segment, 1 of {world_size}", left)
    with bar as advance:
        annotate(job, annotator, device, rank, world_size, advance)


def rank_arguments(job: Annotation, trained: Path) -> list[str]:
    """Return the command line of this module."""
    options = {
        "--shards": job.source,
        "--out": job.out,
        "--checkpoint": trained,
        "--batch": job.batch,
        "--max-missing": job.max_missing,
    }
    return [str(word) for option in options.items() for word in option]


@app.command()
def segment(
    shards: Annotated[str, typer.Option(help="Folder or URL of the data set.")],
    out: Annotated[str, typer.Option(help="Of the new data set.")],
    checkpoint: Annotated[Path, typer.Option(help="Run, checkpoint, or Hugging Face folder.")],
    batch: Annotated[int, typer.Option(min=1)] = 16,
    max_missing: Annotated[int, typer.Option(min=0)] = 0,
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
) -> None:
    """Segment the shards of this rank; `deepspeed` starts one such process for each rank."""
    del local_rank  # DeepSpeed's launcher says it in the environment as well
    die_with_parent()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    segment_rank(Annotation(shards, out, batch, max_missing), checkpoint, rank, world_size)


def main() -> None:
    """Run `smdt.inference.segment` as a program."""
    run(app)


if __name__ == "__main__":
    main()

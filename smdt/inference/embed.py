"""Descriptors of a split's aerial images: what `smdt embed` makes.

Every shard is a task of its own that belongs to one rank, and leaves a file of its descriptors; one
that is there is not made again. When all are there they become one file.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from data_shards.base.atomic import remove_leftovers, write_atomic
from data_shards.base.errors import DataError, InputError
from data_shards.build.executor import AdvanceCallback
from data_shards.build.finalize import sha256
from data_shards.format import manifest
from smdt.data.distinct_places import first_of_each
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.pipeline import require_dali
from smdt.data.split import Split
from smdt.evaluation.protocol import protocol_of
from smdt.geometry.augment import QUARTER_DEG, even_turns
from smdt.geometry.field_of_view import RetrievalAugmentConfig
from smdt.inference.gallery import TENSOR, Gallery, GalleryManifest, places_of, write_gallery
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.trained import load_stage
from smdt.stages.weights import resolve_checkpoint
from smdt.training.checkpoints import checkpoint

PARTS = ".smdt-parts"
"""Folder of the shards' descriptors until they are one file; a gallery has no other such name."""
IDS = "sample_ids"


@dataclass(frozen=True)
class EmbedJob:
    """Inputs and output of an embedding.

    Attributes:
        trained: run or checkpoint of the retrieval stage.
        shards: folder or URL of the data set.
        split: whose aerial images are the gallery.
        out: folder of the gallery.
        batch: images that a process sees at once.
        max_missing: how many unreadable samples may be left out.
        alignment: run or checkpoint that makes aligned images; None: where the run had it.
        turns: at which each image is embedded, at even distances around the circle.
    """

    trained: Path
    shards: str
    split: str
    out: Path
    batch: int = 32
    max_missing: int = 0
    alignment: Path | None = None
    turns: int = 1


def open_retrieval(
    trained: Path, device: torch.device, alignment: Path | None = None
) -> tuple[RetrievalConfig, RetrievalStage]:
    """Return a trained retrieval on a device, ready for use.

    Raises:
        InputError: it is of another stage, or no checkpoint; or it sees no aligned images.
    """
    config, stage = load_stage(trained, alignment)
    if not isinstance(stage, RetrievalStage) or not isinstance(config, RetrievalConfig):
        raise InputError(f"{trained} is of stage {stage.name!r}: name a run of stage 'retrieval'")
    stage.towers.to(device).eval()
    return config, stage


def default_split(shards: str) -> str:
    """Return the default split of a data set's gallery.

    Raises:
        InputError: there are no such shards.
    """
    described = manifest.load(shards)
    protocol = protocol_of(described.name, described.source.get("area"), None)
    return protocol.gallery or protocol.split


def prepare(job: EmbedJob) -> None:
    """Say once what is wrong with the input, before every rank finds it; begin the job.

    Raises:
        InputError: the model or the data set can't be used, the output is another gallery, or DALI
            is not installed.
        DataError: more samples are in missing or truncated tars than allowed.
    """
    split = Split.open(job.shards, job.split)
    if shards_left(job, split, 0, 1):
        require_dali()
        config, stage = open_retrieval(job.trained, torch.device("cpu"), job.alignment)
        require_turns(config.augment, job.turns)
        split.require_views(stage.views[1:])
        stage.require(split)
        split.require_tars(job.max_missing, "--max-missing")
    begin(job)


def require_turns(augment: RetrievalAugmentConfig, turns: int) -> None:
    """Check that towers were trained for this number of turns.

    Raises:
        InputError: they do not.
    """
    if turns == 1:
        return
    if not augment.turn or augment.unknown_heading:
        raise InputError(
            f"--turns {turns} needs towers that get the heading and were trained on turned pairs "
            "(augment.turn without augment.unknown_heading): omit it"
        )
    if augment.turn == "quarters" and (even_turns(turns) % QUARTER_DEG).any():
        raise InputError(
            f"--turns {turns}: these towers were trained on quarter turns (augment.turn), "
            "take 2 or 4"
        )


def begin(job: EmbedJob) -> Split:
    """Check the job and start or resume it; every rank may call it.

    Raises:
        InputError: the output is another gallery, or there is no such split or checkpoint.
    """
    split = Split.open(job.shards, job.split)
    folder = resolve_checkpoint(job.trained)
    GalleryManifest(
        checkpoint=str(folder.resolve()),
        weights_sha256=sha256(folder / checkpoint.WEIGHTS),
        shards=job.shards,
        split=job.split,
        manifest_hash=split.manifest_hash,
        elevation_deg=_elevation(split),
        turns=job.turns,
    ).claim(job.out)
    return split


def embed(
    job: EmbedJob, device: torch.device, rank: int, world_size: int, advance: AdvanceCallback
) -> None:
    """Embed those shards of this rank that are not done.

    Args:
        job: what to do.
        device: of the towers.
        rank: of this process, below `world_size`.
        world_size: processes that share the shards.
        advance: called with the number of samples done since the last call.

    Raises:
        InputError: as `begin`; the split has no aerial images of the kind that the towers see.
        DataError: more samples are damaged than allowed, or storage stays away.
    """
    split = begin(job)
    left = shards_left(job, split, rank, world_size)
    if not left:
        return
    _, stage = open_retrieval(job.trained, device, job.alignment)
    stage.require(split)
    view = stage.views[1]
    for shard in left:
        loader = EvaluationLoader(
            split,
            views=[view],
            batch=job.batch,
            rank=0,
            world_size=1,
            device=device,
            max_missing=job.max_missing,
            sample_ids=np.flatnonzero(split.column("shard") == shard),
        )
        ids, descriptors = [np.empty(0, np.int64)], []
        with torch.no_grad():
            for batch in loader:
                ids.append(batch.sample_ids)
                descriptors.append(stage.embed_turned(batch, job.turns).cpu())
                advance(len(batch.sample_ids))
        nothing = torch.empty(0, stage.towers.descriptor_dim * job.turns)
        part = {
            IDS: torch.from_numpy(np.concatenate(ids)),
            TENSOR: torch.cat([nothing, *descriptors]),
        }
        path = _part(job.out, shard)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, save(part))


def shards_left(job: EmbedJob, split: Split, rank: int, world_size: int) -> list[int]:
    """Return those shards of a rank that are not done."""
    if _is_finished(job):
        return []
    own = sorted(split.shards)[rank::world_size]
    return [shard for shard in own if not _part(job.out, shard).exists()]


def finish(job: EmbedJob) -> Gallery:
    """Make a gallery of all shards' descriptors: an aerial image that samples share is one entry.

    Raises:
        InputError: shards are missing.
        DataError: more samples were left out, by all ranks together, than allowed.
    """
    if not _is_finished(job):
        split = Split.open(job.shards, job.split)
        parts = [*_parts(job, split)]
        ids = np.concatenate([part[IDS].numpy() for part in parts])
        missing = len(split) - len(ids)
        if missing > job.max_missing:
            raise DataError(
                f"{missing} samples of split {split.name!r} in {split.root} can't be read, more "
                f"than --max-missing {job.max_missing}: `smdt shards verify` names them"
            )
        entries = first_of_each(split.aerial_images(ids))
        rows = torch.cat([part[TENSOR] for part in parts])
        if len(entries) < len(ids):
            rows = rows[torch.from_numpy(entries)]
        write_gallery(job.out, rows, places_of(split, ids[entries]))
    shutil.rmtree(job.out / PARTS, ignore_errors=True)
    remove_leftovers(job.out)
    return Gallery.open(job.out)


def _elevation(split: Split) -> tuple[float, float] | None:
    """Return the elevations that all panoramas of a split share, None if they differ."""
    edges = [np.unique(split.column(name)) for name in ("elevation_min", "elevation_max")]
    if any(len(each) != 1 or np.isnan(each[0]) for each in edges):
        return None
    return float(edges[0][0]), float(edges[1][0])


def _parts(job: EmbedJob, split: Split) -> Iterator[dict[str, torch.Tensor]]:
    for shard in sorted(split.shards):
        path = _part(job.out, shard)
        try:
            yield load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path} can't be read ({error}): delete it and start `smdt embed` again"
            ) from None


def _part(out: Path, shard: int) -> Path:
    return out / PARTS / f"{shard:06d}.safetensors"


def _is_finished(job: EmbedJob) -> bool:
    try:
        Gallery.open(job.out)
    except InputError:
        return False
    return True

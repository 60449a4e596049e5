import json
import shutil
from dataclasses import replace
from io import BytesIO
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data_shards.base.errors import DataError, InputError
from data_shards.build.dataset import build
from data_shards.build.finalize import sha256
from data_shards.format.plan import BuildOptions
from data_shards.format.sample import Meta, Sample
from data_shards.sources.source import SplitPlan
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.geometry.field_of_view import RetrievalAugmentConfig
from smdt.inference.embed import (
    PARTS,
    EmbedJob,
    begin,
    default_split,
    embed,
    finish,
    prepare,
    require_turns,
    shards_left,
)
from smdt.inference.gallery import Gallery
from smdt.inference.locate import Locator, PhotoQuery
from smdt.stages import config as configuration
from tests.checkpoints import UntrainedAlignment, save_untrained

CPU = torch.device("cpu")


@pytest.fixture
def job(world, write_config, tmp_path):
    config = configuration.load(write_config(tmp_path / "run"))
    save_untrained(tmp_path / "checkpoint", config)
    out = tmp_path / "gallery"
    return EmbedJob(tmp_path / "checkpoint", str(world), "train", out, batch=5, max_missing=0)


def run(job, ranks=1, rank=None):
    for each in range(ranks) if rank is None else [rank]:
        embed(job, CPU, each, ranks, lambda samples: None)


def expected(job, world):
    """The aerial descriptors of a split, one image at a time."""
    split = Split.open(world, job.split)
    config = configuration.load(job.trained / "config.yaml")
    stage = save_untrained(job.trained.with_name(f"again-{job.split}"), config)
    loader = EvaluationLoader(split, views=["aerial"], batch=1, rank=0, world_size=1, device=CPU)
    stage.towers.eval()
    with torch.no_grad():
        return torch.cat(
            [stage.towers.embed_aerial(stage._aerial(batch, slice(0, 1))) for batch in loader]
        )


def test_a_gallery_has_every_aerial_image_and_its_place(job, world):
    run(job)
    gallery = finish(job)
    split = Split.open(world, "train")
    torch.testing.assert_close(gallery.descriptors, expected(job, world), rtol=1e-4, atol=1e-5)
    table = pq.read_table(job.out / "places.parquet").to_pydict()
    assert table["source_id"] == split.names("source_id")
    assert np.array_equal(table["lat"], split.column("lat"), equal_nan=True)
    assert gallery.place(3)["key"] == "train-000000003"
    assert sorted(path.name for path in job.out.iterdir()) == [
        "descriptors.safetensors",
        "gallery.json",
        "places.parquet",
    ]


def test_ranks_share_the_shards_and_what_is_done_is_not_done_again(job, world):
    split = Split.open(world, "train")
    run(job, ranks=3, rank=1)
    part = job.out / PARTS / "000001.safetensors"
    before = part.stat().st_mtime_ns
    assert shards_left(job, split, 1, 3) == []
    with pytest.raises(InputError, match=r"000000.safetensors can't be read"):
        finish(job)
    run(job)
    assert part.stat().st_mtime_ns == before
    gallery = finish(job)
    torch.testing.assert_close(gallery.descriptors, expected(job, world), rtol=1e-4, atol=1e-5)
    assert shards_left(job, split, 0, 1) == []
    assert torch.equal(finish(job).descriptors, gallery.descriptors)


def test_a_folder_holds_one_gallery(job, write_config, tmp_path):
    begin(job)
    with pytest.raises(InputError, match="is a gallery of split train"):
        begin(replace(job, split="val"))
    other = configuration.load(write_config(tmp_path / "other"))
    save_untrained(tmp_path / "other-weights", other, seed=1)
    with pytest.raises(InputError, match="name another folder"):
        begin(replace(job, trained=tmp_path / "other-weights"))
    with pytest.raises(InputError, match=r"not finished: start its `smdt embed` again"):
        Gallery.open(job.out)


def test_a_folder_of_the_users_is_no_place_for_a_gallery(job, world):
    users = job.out / "parts" / "notes.txt"
    users.parent.mkdir(parents=True)
    users.touch()
    with pytest.raises(InputError, match=r"is not empty \(parts\) and not a gallery"):
        begin(job)
    with pytest.raises(InputError, match="and not a gallery"):
        begin(replace(job, out=world))
    assert users.exists()


def test_what_the_user_puts_into_a_gallery_stays(job):
    begin(job)
    users = job.out / "parts" / "notes.txt"
    users.parent.mkdir()
    users.touch()
    run(job)
    finish(job)
    assert users.exists()
    assert not (job.out / PARTS).exists()


@pytest.mark.parametrize(
    ("augment", "turns", "refused"),
    [
        ({"turn": True}, 12, None),
        ({"turn": "quarters"}, 4, None),
        ({"turn": False}, 1, None),
        ({"turn": False}, 2, "trained on turned pairs"),
        ({"turn": True, "unknown_heading": True}, 2, "get the heading"),
        ({"turn": "quarters"}, 3, "take 2 or 4"),
    ],
)
def test_turns_are_those_that_the_towers_know(augment, turns, refused):
    known = RetrievalAugmentConfig(**augment)
    if refused is None:
        require_turns(known, turns)
        return
    with pytest.raises(InputError, match=f"--turns {turns}.*{refused}"):
        require_turns(known, turns)


def test_turns_are_part_of_what_a_gallery_is(job):
    begin(job)
    with pytest.raises(InputError, match="weights or turns: name another folder"):
        begin(replace(job, turns=2))
    # A gallery of before there were any.
    described = json.loads((job.out / "gallery.json").read_text())
    del described["turns"]
    (job.out / "gallery.json").write_text(json.dumps(described))
    begin(job)


def test_raw_tiles_are_turned_in_quarters(world, write_config, tmp_path):
    config = configuration.load(
        write_config(
            tmp_path / "run",
            aerial="raw",
            augment={"turn": "quarters"},
            geometry={"tile_size": 64},
        )
    )
    stage = save_untrained(tmp_path / "raw", config)
    stage.towers.eval()
    out = tmp_path / "out"
    job = EmbedJob(tmp_path / "raw", str(world), "val", out, batch=24, max_missing=0, turns=4)
    prepare(job)
    run(job)
    made = finish(job).descriptors
    loader = EvaluationLoader(
        Split.open(world, "val"), views=["aerial"], batch=24, rank=0, world_size=1, device=CPU
    )
    (tiles,) = [stage.seen(batch, "aerial") for batch in loader]
    # A quarter clockwise of north is east, which comes up by a turn to the left.
    with torch.no_grad():
        quarters = [stage.towers.embed_aerial(tiles.rot90(by, dims=(2, 3))) for by in range(4)]
    torch.testing.assert_close(made, torch.cat(quarters, dim=1) / 2, rtol=1e-4, atol=1e-5)
    assert torch.allclose(made.norm(dim=1), torch.ones(24), atol=1e-5)


def test_what_is_no_gallery_is_refused(job, tmp_path):
    with pytest.raises(InputError, match="make it with `smdt embed`"):
        Gallery.open(tmp_path)
    run(job)
    finish(job)
    description = json.loads((job.out / "gallery.json").read_text())
    (job.out / "gallery.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(InputError, match="format 99, and this version reads 1"):
        Gallery.open(job.out)
    (job.out / "gallery.json").write_text(json.dumps(description))
    (job.out / "descriptors.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="make it again"):
        Gallery.open(job.out)


def test_generators_that_moved_are_named_and_a_photo_needs_none(
    job, alignment, write_config, world, tmp_path
):
    there = shutil.copytree(alignment.folder, tmp_path / "there")
    section = {"checkpoint": str(there), "sha256": sha256(there / "weights.safetensors")}
    path = write_config(tmp_path / "run", aerial="aligned", alignment=section)
    trained = tmp_path / "aligned-run"
    save_untrained(trained, configuration.load(path))
    job = replace(job, trained=trained, out=tmp_path / "aligned-gallery")
    there.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"name it .*--alignment"):
        prepare(job)
    assert not job.out.exists(), "what can't be made claims no folder"
    other = UntrainedAlignment.save(world, tmp_path / "other", seed=2).folder
    with pytest.raises(InputError, match="no weights with SHA-256"):
        prepare(replace(job, alignment=other))
    job = replace(job, alignment=tmp_path / "elsewhere")
    prepare(job)
    run(job)
    locate = Locator(finish(job))
    photo = torch.zeros(32, 128, 3, dtype=torch.uint8)
    assert len(locate(photo, PhotoQuery.of(360.0, 0.0, "panorama", 1), 3)) == 3


def test_a_finished_gallery_needs_its_tars_no_more(job, world, tmp_path):
    job = replace(job, shards=str(shutil.copytree(world, tmp_path / "copy")))
    run(job)
    finish(job)
    (tmp_path / "copy" / "train" / "train-000002.tar").unlink()
    prepare(job)


def test_tars_that_are_not_there_are_named_before_ranks_start(job, world, tmp_path):
    copy = shutil.copytree(world, tmp_path / "copy")
    (copy / "train" / "train-000002.tar").unlink()
    with pytest.raises(DataError, match=r"train-000002.tar: 16 samples .* more than --max-missing"):
        prepare(replace(job, shards=str(copy)))


def test_damaged_samples_are_left_out_and_counted(job, world, tmp_path):

    copy = tmp_path / "copy"
    shutil.copytree(world, copy)
    split = Split.open(copy, "train")
    middle = int(split.column("aerial_offset")[5] + split.column("aerial_size")[5] // 2)
    with split.tar(5).open("r+b") as tar:
        tar.seek(middle)
        byte = tar.read(1)[0]
        tar.seek(middle)
        tar.write(bytes([byte ^ 255]))
    damaged = replace(job, shards=str(copy), out=tmp_path / "damaged")
    with pytest.raises(DataError):
        run(damaged)
    tolerant = replace(damaged, max_missing=1)
    run(tolerant)
    gallery = finish(tolerant)
    assert len(gallery.descriptors) == 63
    assert 5 not in [int(key[-9:]) for key in gallery.places["key"].to_pylist()]


def test_another_stage_is_refused_before_ranks_start(job, alignment):
    with pytest.raises(InputError, match="is of stage 'alignment'"):
        prepare(replace(job, trained=alignment.folder))


def test_the_default_split_is_the_one_that_is_evaluated(world):
    assert default_split(str(world)) == "val"


def test_parts_are_plain_safetensors(job):
    run(job)
    part = load_file(job.out / PARTS / "000002.safetensors")
    assert part["sample_ids"].tolist() == list(range(32, 48))
    assert part["descriptors"].shape == (16, 64)


class TwoPhotos:
    """Six tiles in three shards; the second photo of each has its own position."""

    name = "folder"
    splits: ClassVar = {"train": SplitPlan("pairs", 12)}

    def sample(self, split: str, row: int) -> Sample:
        rng = np.random.default_rng(row % 6)
        aerial, ground = (
            rng.integers(0, 256, (32, width, 3), dtype=np.uint8) for width in (32, 128)
        )
        lat = 40 + row % 6 + 0.00005 * (row // 6)
        meta = Meta(f"{row}", lat=lat, lon=9.0, extent_m=50.0, elevation=(-45.0, 45.0))
        return Sample(meta, {"ground.png": png(ground), "aerial.png": png(aerial)})

    def options(self) -> dict[str, object]:
        return {}


def png(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_tile_of_two_photos_is_one_entry_of_the_gallery(job, tmp_path):
    root = tmp_path / "two"
    build(TwoPhotos(), root, BuildOptions(samples_per_shard=5), workers=1)
    job = replace(job, shards=str(root))
    run(job)
    gallery = finish(job)
    whole = expected(job, root)
    split = Split.open(root, "train")
    tiles = [int(split.source_id(i)) % 6 for i in range(12)]
    first = [tiles.index(tile) for tile in dict.fromkeys(tiles)]
    assert gallery.places["key"].to_pylist() == [split.key(i) for i in first]
    torch.testing.assert_close(gallery.descriptors, whole[first], rtol=1e-4, atol=1e-5)

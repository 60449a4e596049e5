import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.base.errors import DataError, InputError, ShardError
from data_shards.build.dataset import build
from data_shards.format import layout
from data_shards.format.images import PreparedImage, encode_png
from data_shards.format.manifest import load
from data_shards.format.plan import BuildOptions
from data_shards.inspect.verify import verify
from data_shards.sources.source import SplitPlan
from data_shards.world.source import WorldSource
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.inference.annotate import Annotation, annotate, begin, finish, samples_left
from smdt.inference.annotated_shard import Annotator

CPU = torch.device("cpu")


class Brightness(Annotator):
    """Dark pixels are class 0, bright ones 5."""

    part = "seg"
    views = ("ground",)

    def __init__(self, threshold=128, fail_after=None):
        self.threshold = threshold
        self.left = fail_after

    @property
    def model(self):
        return {"threshold": self.threshold}

    def __call__(self, batch):
        if self.left is not None:
            self.left -= len(batch.sample_ids)
            if self.left < 0:
                raise RuntimeError("killed")
        return [self.made(image.numpy()) for image in batch.images["ground"]]

    def made(self, image):
        classes = np.where(image[..., 1] < self.threshold, 0, 5).astype(np.uint8)
        return PreparedImage(encode_png(Image.fromarray(classes)), "png", *classes.shape)


@pytest.fixture
def job(world, tmp_path):
    return Annotation(str(world), str(tmp_path / "out"), batch=5, max_missing=0)


def run(job, annotator, ranks=1):
    for rank in range(ranks):
        annotate(job, annotator, CPU, rank, ranks, lambda samples: None)
    return finish(job)


def members(path):
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def annotated(world, tmp_path_factory):
    """The world with class maps by brightness."""
    out = tmp_path_factory.mktemp("annotated") / "out"
    run(Annotation(str(world), str(out), batch=5, max_missing=0), Brightness())
    return out


def test_all_but_the_part_is_as_it_was_and_in_its_order(world, annotated):
    tars = sorted(path.relative_to(world) for path in world.rglob("*.tar"))
    assert tars == sorted(path.relative_to(annotated) for path in annotated.rglob("*.tar"))
    assert len(tars) == 6
    for path in tars:
        before, after = members(world / path), members(annotated / path)
        assert [name for name, _ in after] == [name for name, _ in before]
        for (name, old), (_, new) in zip(before, after, strict=True):
            if not name.endswith(".seg.png"):
                assert new == old


def test_the_new_data_set_is_whole_and_says_what_made_it(world, annotated):
    assert verify(annotated, workers=1).damages == []
    before, after = load(world), load(annotated)
    assert after.made == {"seg": {"threshold": 128}}
    for name, split in after.splits.items():
        assert split.views == before.splits[name].views
        assert split.duplicates == before.splits[name].duplicates
        assert split.samples == before.splits[name].samples


def test_the_part_is_what_the_model_makes_of_the_decoded_views(annotated):
    loader = EvaluationLoader(
        Split.open(annotated, "val"),
        views=("ground", "seg"),
        batch=8,
        rank=0,
        world_size=1,
        device=CPU,
    )
    for batch in loader:
        for ground, seg in zip(batch.images["ground"], batch.images["seg"], strict=True):
            assert torch.equal(seg[..., 0] == 5, ground[..., 1] >= 128)


@pytest.mark.parametrize("ranks", [2, 7])
def test_the_number_of_ranks_changes_no_byte(job, annotated, ranks, tmp_path):
    run(job, Brightness(), ranks)
    assert files(tmp_path / "out") == files(annotated)


def test_a_killed_job_goes_on_and_makes_only_what_is_missing(job, annotated, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        run(job, Brightness(fail_after=40))
    out = tmp_path / "out"
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(finished) == 2
    with pytest.raises(ShardError, match="Not built yet: 2 of 4 shards of train"):
        finish(job)
    plan = begin(job, Brightness())
    assert samples_left(job, plan, 0, 1) == 64 + 24 - 32
    counter = Brightness(fail_after=64 + 24 - 32)
    run(job, counter)
    assert counter.left == 0
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert files(out) == files(annotated)


def test_another_model_or_the_source_itself_is_refused_as_a_place(job, world):
    begin(job, Brightness())
    with pytest.raises(InputError, match=r"started with made\.seg\.threshold 128, not 99"):
        begin(job, Brightness(99))
    with pytest.raises(DataError, match="name another folder"):
        begin(replace(job, out=str(world)), Brightness())


@pytest.mark.parametrize("spelling", ["{}/", "{}/../{name}", "{}-link", "file://{}"])
def test_the_source_is_refused_as_a_place_however_it_is_spelled(job, world, spelling, tmp_path):
    source = shutil.copytree(world, tmp_path / "source")
    (tmp_path / "source-link").symlink_to(source)
    before = (source / "manifest.json").read_bytes()
    out = spelling.format(source, name=source.name)
    with pytest.raises(DataError, match="where the shards come from"):
        begin(replace(job, shards=str(source), out=out), Brightness())
    assert (source / "manifest.json").read_bytes() == before


def test_tiles_that_are_not_square_are_refused_before_they_are_mapped(job, world, monkeypatch):
    monkeypatch.setattr(Brightness, "views", ("aerial",))
    column = Split.column

    def changed(split, name):
        found = column(split, name)
        return found + (np.arange(len(found)) == 3) if name == "aerial_width" else found

    monkeypatch.setattr(Split, "column", changed)
    with pytest.raises(DataError, match="tiles that are not square, the first"):
        begin(job, Brightness())
    assert not Path(job.out).exists()


def test_a_source_that_was_built_anew_is_not_mixed_with_what_was_made_of_the_old(job, world):
    source = shutil.copytree(world, Path(job.out).with_name("source"))
    job = replace(job, shards=str(source))
    begin(job, Brightness())
    manifest = source / layout.MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(InputError, match="or from an older build of this one"):
        begin(job, Brightness())


@pytest.fixture
def damaged(world, tmp_path, job):
    """The world with a panorama of the first shard that fails its checksum; and which."""
    root = shutil.copytree(world, tmp_path / "damaged")
    split = Split.open(root, "train")
    with split.tar(3).open("r+b") as tar:
        tar.seek(int(split.column("aerial_offset")[3]) + 50)
        tar.write(b"????")
    return replace(job, shards=str(root))


def test_a_damaged_sample_is_an_error_and_leaves_no_shard(damaged, tmp_path):
    with pytest.raises(DataError, match=r"--max-missing 0: Bytes .* fail their checksum\. `smdt"):
        run(damaged, Brightness())
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_damaged_sample_is_left_out_and_listed_where_that_is_allowed(damaged, tmp_path):
    out = tmp_path / "out"
    manifest = run(replace(damaged, max_missing=1), Brightness())
    assert manifest.splits["train"].samples == 63
    assert manifest.splits["train"].rejected == {"checksum": 1}
    (line,) = (out / layout.REJECTED).read_text().splitlines()
    assert json.loads(line)["row"] == 3
    assert verify(out, workers=1).damages == []
    assert [Split.open(out, "train").key(i)[-1] for i in range(5)] == list("01245")


def test_ranks_together_leave_out_no_more_than_allowed(damaged):
    for rank in (0, 1):
        annotate(replace(damaged, max_missing=1), Brightness(), CPU, rank, 2, lambda samples: None)
    with pytest.raises(DataError, match=r"1 samples .* more than --max-missing 0"):
        finish(damaged)


class Gallery(WorldSource):
    """A world with a second split that has aerial images alone, and none with class maps."""

    @property
    def splits(self):
        return {**super().splits, "val": SplitPlan("aerial", 24)}

    def sample(self, split, row):
        sample = super().sample(split, row)
        stays = ("aerial",) if split == "val" else ("aerial", "ground")
        parts = {name: data for name, data in sample.parts.items() if name.startswith(stays)}
        return replace(sample, parts=parts)


def test_samples_without_the_views_pass_as_they_are(job, tmp_path):
    root = tmp_path / "gallery"
    options = BuildOptions(samples_per_shard=5, seed=4)
    build(Gallery(0, 8, 24, "easy", (32, 128), 96), root, options, workers=1)
    run(replace(job, shards=str(root)), Brightness())
    out = tmp_path / "out"
    assert verify(out, workers=1).damages == []
    for path in root.rglob("val/*.tar"):
        assert (out / path.relative_to(root)).read_bytes() == path.read_bytes()
    kept = members(root / "train/train-000001.tar")
    made = members(out / "train/train-000001.tar")
    assert [member for member in made if not member[0].endswith("seg.png")] == kept
    assert len(made) == 4 * len(kept) // 3
    with pytest.raises(DataError, match=r"No sample in .* has aligned"):
        begin(replace(job, shards=str(root)), Impossible())


class Impossible(Brightness):
    views = ("aligned",)

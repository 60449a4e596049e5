import io
import tarfile

import numpy as np
import pytest
import torch
import webdataset as wds
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from data_shards.base.errors import InputError, run
from data_shards.build.dataset import build
from data_shards.format.manifest import load
from data_shards.format.pixels import PixelSums, grid_histogram
from data_shards.format.plan import BuildOptions
from data_shards.inspect.stats import stats
from data_shards.inspect.verify import verify
from data_shards.sources.source import SplitPlan
from data_shards.world.source import WorldSource
from smdt.cli.app import app
from smdt.data.split import Split
from smdt.geometry.mapping import PanoramaProjection
from smdt.inference.align import open_alignment
from smdt.stages import config as configuration
from tests.checkpoints import save_untrained

CPU = torch.device("cpu")


def align(*arguments):
    with pytest.raises(SystemExit) as ended:
        run(app, ["align", *map(str, arguments)])
    return ended.value.code


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def tars(root, split="val"):
    return sorted(str(path) for path in (root / split).glob("*.tar"))


def test_each_image_is_what_the_generators_make_of_the_mapped_tile(alignment, aligned_world):
    config, stage = alignment.config, alignment.stage
    mapping = PanoramaProjection(config.geometry, *alignment.size)
    split = Split.open(aligned_world, "val")
    for path in tars(aligned_world):
        for name, data in members(path).items():
            if not name.endswith("aligned.jpg"):
                continue
            sample = int(name.split(".")[0][-9:])
            tile = members(path)[name.replace("aligned.jpg", "aerial.jpg")]
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(tile))))
            extent, low, high = (
                split.column(column)[sample : sample + 1]
                for column in ("extent_m", "elevation_min", "elevation_max")
            )
            panorama = mapping([pixels], extent, np.stack([low, high], axis=1)) / 127.5 - 1
            with torch.no_grad():
                first = stage.generators(panorama)
                seen = stage.discriminators.feedback(panorama, *first)
                _, expected = stage.generators(panorama, *seen)
            levels = (255 * (expected[0].permute(1, 2, 0) + 1) / 2).numpy()
            made = np.array(Image.open(io.BytesIO(data)))
            assert made.shape == (*alignment.size, 3)
            assert np.abs(made - levels).mean() < 4  # what JPEG does to noise
            assert np.corrcoef(made.ravel(), levels.ravel())[0, 1] > 0.99


def test_all_else_of_the_shards_is_as_it_was(world, aligned_world):
    for split in ("train", "val"):
        for before, after in zip(tars(world, split), tars(aligned_world, split), strict=True):
            old, new = members(before), members(after)
            made = new.keys() - old.keys()
            assert len(made) == len({name.split(".")[0] for name in old})
            assert {name.partition(".")[2] for name in made} == {"aligned.jpg"}
            assert {name: new[name] for name in old} == old


def test_index_manifest_and_statistics_know_the_part(world, alignment, aligned_world):
    assert verify(aligned_world, workers=1).damages == []
    manifest = load(aligned_world)
    made = manifest.made["aligned"]
    assert made["arrangement"] == "chain"
    assert made["mapping"] == "mixed"
    assert made["image_size"] == list(alignment.size)
    assert "quality 95, 4:4:4" in made["encoder"]
    assert set(made["sha256"]) == {"weights.safetensors", "config.yaml"}
    sums = PixelSums()
    for path in tars(aligned_world):
        for name, data in members(path).items():
            if name.endswith("aligned.jpg"):
                pixels = np.array(Image.open(io.BytesIO(data)))
                sums += PixelSums.from_histogram(grid_histogram(pixels))
    before = load(world).splits["val"]
    assert manifest.splits["val"].views == {**before.views, "aligned": sums.statistics()}
    assert manifest.splits["val"].duplicates == before.duplicates
    assert str(stats(aligned_world)["val"].sizes["aligned"]) == "32 x 64"
    assert stats(aligned_world)["val"].sizes["aligned"].images == 24


def test_stock_readers_read_the_part(aligned_world):
    expected = [
        np.array(Image.open(io.BytesIO(data)))
        for path in tars(aligned_world)
        for name, data in members(path).items()
        if name.endswith("aligned.jpg")
    ]
    samples = list(wds.WebDataset(tars(aligned_world), shardshuffle=False).decode("rgb8"))
    for sample, image in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample["aligned.jpg"], image)

    @pipeline_def(batch_size=len(expected), num_threads=1, device_id=None)
    def reader():
        idx = [path.replace(".tar", ".idx") for path in tars(aligned_world)]
        encoded = fn.readers.webdataset(
            paths=tars(aligned_world), index_paths=idx, ext=["aligned.jpg"]
        )
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    pipeline = reader()
    pipeline.build()
    (images,) = pipeline.run()
    for position, image in enumerate(expected):
        np.testing.assert_array_equal(np.array(images[position]), image)


def test_no_byte_depends_on_the_batch(world, alignment, aligned_world, tmp_path):
    out = tmp_path / "out"
    arguments = ("--shards", world, "--out", out, "--checkpoint", alignment.folder, "--batch", 3)
    assert align(*arguments) == 0
    for split in ("train", "val"):
        for one, other in zip(tars(aligned_world, split), tars(out, split), strict=True):
            assert members(one) == members(other)


class Gallery(WorldSource):
    """A world whose second split has aerial images alone."""

    @property
    def splits(self):
        return {**super().splits, "val": SplitPlan("aerial", 8)}

    def sample(self, split, row):
        sample = super().sample(split, row)
        if split == "val":
            parts = {n: data for n, data in sample.parts.items() if n.startswith("aerial")}
            return type(sample)(sample.meta, parts)
        return sample


def test_the_tiles_of_a_gallery_are_aligned_too(alignment, tmp_path):
    root, out = tmp_path / "gallery", tmp_path / "out"
    build(Gallery(0, 8, 8, "easy", (32, 128), 96), root, BuildOptions(), workers=1)
    assert align("--shards", root, "--out", out, "--checkpoint", alignment.folder) == 0
    assert stats(out)["val"].sizes.keys() == {"aerial", "aligned"}


def test_what_cannot_align_is_refused(world, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        stage: retrieval
        run: {{name: test, out: {tmp_path / "run"}}}
        data: {{shards: {world}}}
        geometry: {{panorama_size: [32, 128]}}
        model: {{width: 32, layers: 2}}
        """
    )
    folder = tmp_path / "step-00000002"
    save_untrained(folder, configuration.load(path))
    with pytest.raises(InputError, match=r"is of stage 'retrieval': name .* alignment stage"):
        open_alignment(folder, CPU)
    out = tmp_path / "out"
    assert align("--shards", world, "--out", out, "--checkpoint", tmp_path / "nothing") == 2
    assert "neither a checkpoint nor a run" in capsys.readouterr().err
    assert not out.exists()

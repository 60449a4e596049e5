"""What others ship reads our shards: webdataset, and DALI's reader with and without our `.idx`."""

import io
import json

import numpy as np
import pytest
import webdataset as wds
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

pytestmark = pytest.mark.slow  # starts processes, or imports what others ship


def tars(root):
    return [str(path) for path in sorted((root / "train").glob("*.tar"))]


def test_webdataset_reads_the_bytes(small_set, memory_source):
    source = memory_source()
    samples = list(wds.WebDataset(tars(small_set), shardshuffle=False))
    assert len(samples) == 9
    for sample in samples:
        original = source.sample("train", int(sample["__key__"].split("-")[1]))
        assert {part: sample[part] for part in original.parts} == dict(original.parts)
        assert json.loads(sample["meta.json"])["source_id"] == original.meta.source_id


@pytest.mark.parametrize("with_idx", [True, False])
def test_dali_reads_the_pixels(small_set, memory_source, with_idx):
    paths = tars(small_set)
    idx = [path.replace(".tar", ".idx") for path in paths] if with_idx else []

    @pipeline_def(batch_size=3, num_threads=1, device_id=None)
    def reader():
        ground, aerial = fn.readers.webdataset(
            paths=paths, index_paths=idx, ext=["ground.jpg", "aerial.png"]
        )
        return (
            fn.decoders.image(ground, device="cpu", output_type=types.RGB),
            fn.decoders.image(aerial, device="cpu", output_type=types.RGB),
        )

    pipeline = reader()
    pipeline.build()
    source = memory_source()
    rows = [row for row in range(10) if row != 2]
    for start in range(0, 9, 3):
        batch = pipeline.run()
        for view, images in zip(("ground.jpg", "aerial.png"), batch, strict=True):
            for position, row in enumerate(rows[start : start + 3]):
                data = source.sample("train", row).parts[view]
                expected = np.asarray(Image.open(io.BytesIO(data)))
                np.testing.assert_array_equal(np.array(images[position]), expected)

"""Decoding: PIL's pixels, memory that stays, batches of any size, and the GPU graph's wiring."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from smdt.data.pipeline import Decoder, decoding_graph
from tests.pictures import JPEG_KINDS, encoded, picture


def pil_pixels(image: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(BytesIO(image)).convert(mode))


@pytest.mark.parametrize("options", JPEG_KINDS)
def test_jpeg_pixels_are_pils(options):
    images = [encoded(picture(seed, 97, 161), "JPEG", **options) for seed in range(3)]
    decoded = Decoder(["ground"], 3, "cpu", None, 2).decode({"ground": images})["ground"]
    assert isinstance(decoded, torch.Tensor)
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.numpy(), np.stack([pil_pixels(image) for image in images]))


def test_views_keep_their_images_and_seg_its_class_ids():
    ids = np.random.default_rng(0).choice([0, 1, 2, 3, 4, 5, 255], (2, 40, 64)).astype(np.uint8)
    batch = {
        "ground": [encoded(picture(seed, 48, 80), "JPEG") for seed in range(2)],
        "aerial": [encoded(picture(seed, 64, 64), "PNG") for seed in range(2, 4)],
        "seg": [encoded(each, "PNG") for each in ids],
    }
    decoded = Decoder(["ground", "aerial", "seg"], 2, "cpu", None, 1).decode(batch)
    assert list(decoded) == ["ground", "aerial", "seg"]
    assert np.array_equal(decoded["ground"][1].numpy(), pil_pixels(batch["ground"][1]))
    assert np.array_equal(decoded["aerial"][0].numpy(), picture(2, 64, 64))
    assert decoded["seg"][1].shape == (40, 64, 1)
    assert np.array_equal(decoded["seg"][1][..., 0].numpy(), ids[1])


def test_sizes_may_differ_inside_a_batch():
    images = [encoded(picture(seed, 32 + 16 * seed, 64), "JPEG") for seed in range(3)]
    decoded = Decoder(["aerial"], 3, "cpu", None, 2).decode({"aerial": images})["aerial"]
    assert [image.shape for image in decoded] == [(32, 64, 3), (48, 64, 3), (64, 64, 3)]
    for image, source in zip(decoded, images, strict=True):
        assert np.array_equal(image.numpy(), pil_pixels(source))


def test_batches_may_be_smaller():
    decoder = Decoder(["ground"], 4, "cpu", None, 1)
    for size in (4, 1, 3):
        images = [encoded(picture(seed, 32, 48), "JPEG") for seed in range(size)]
        decoded = decoder.decode({"ground": images})["ground"]
        assert len(decoded) == size
        assert np.array_equal(decoded[-1].numpy(), pil_pixels(images[-1]))


def test_a_held_batch_is_not_overwritten():
    decoder = Decoder(["ground"], 2, "cpu", None, 2)
    held, copies = [], []
    for step in range(8):
        height = 48 if step % 3 else 64  # both ways of handing over
        images = [
            encoded(picture(2 * step, 48, 64), "JPEG"),
            encoded(picture(2 * step + 1, height, 64), "JPEG"),
        ]
        held.append(decoder.decode({"ground": images})["ground"])
        copies.append([image.clone() for image in held[-1]])
    del decoder
    for batch, copy in zip(held, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, copy, strict=True))


def test_equal_sizes_share_one_block_without_a_copy():
    """The images of a batch lie behind each other in the memory that DALI decoded into."""
    images = [encoded(picture(seed, 32, 48), "JPEG") for seed in range(3)]
    decoded = Decoder(["ground"], 3, "cpu", None, 1).decode({"ground": images})["ground"]
    assert isinstance(decoded, torch.Tensor)
    assert decoded.is_contiguous()
    assert not decoded.is_pinned()


def test_gpu_graph_is_wired():
    """Without a GPU the graph can be defined and serialised, not built: check its operators."""
    graph = decoding_graph(["ground", "seg"], 2, "gpu", device_id=None, threads=1)
    definition = graph.serialize()
    assert definition.count(b"decoders__Image") == 2
    assert b"mixed" in definition
    assert b"jpeg_fancy_upsampling" in definition
    cpu = decoding_graph(["ground", "seg"], 2, "cpu", device_id=None, threads=1).serialize()
    assert b"mixed" not in cpu

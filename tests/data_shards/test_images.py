import io
import zlib

import numpy as np
import pytest
from PIL import Image

from data_shards.images import Encoding, decode, encode_jpeg, prepare_class_map, prepare_photo
from data_shards.sample import RejectedSample


def reason_of(function, *arguments):
    with pytest.raises(RejectedSample) as rejected:
        function("photo.jpg", *arguments)
    assert "photo.jpg" in rejected.value.detail
    return rejected.value.reason


@pytest.mark.parametrize("kept", [0, 1, 20, 200, 0.5, 0.9, -1])
def test_a_truncated_jpeg_is_rejected(make_jpeg, kept):
    data = make_jpeg(128, 256)
    length = int(len(data) * kept) if isinstance(kept, float) else kept
    assert reason_of(decode, data[:length]) in {"unknown_format", "damaged_image"}


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"0" * 99]
)
def test_what_is_no_image_is_rejected(data):
    assert reason_of(decode, data) in {"unknown_format", "damaged_image"}


def test_other_formats_and_modes_are_rejected():
    image = Image.new("RGBA", (8, 8))
    for mode, file_format, reason in (
        ("RGB", "BMP", "unknown_format"),
        ("CMYK", "JPEG", "unsupported_mode"),
        ("RGBA", "PNG", "unsupported_mode"),
        ("P", "PNG", "unsupported_mode"),
    ):
        buffer = io.BytesIO()
        source = image.convert("RGB").convert(mode) if mode != "RGBA" else image
        source.save(buffer, file_format)
        assert reason_of(prepare_photo, buffer.getvalue(), None, Encoding()) == reason


def test_a_giant_is_rejected_before_it_is_decoded(make_png):
    header = bytearray(make_png(np.zeros((4, 4), np.uint8)))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    assert reason_of(decode, bytes(header)) == "too_large"


def test_bytes_stay_unless_the_size_changes(make_jpeg):
    data = make_jpeg(60, 90)
    for size in (None, (60, 90)):
        image = prepare_photo("p", data, size, Encoding())
        assert (image.data, image.height, image.width) == (data, 60, 90)


def test_a_resized_photo_is_a_jpeg_of_that_size_and_always_the_same(make_png):
    y, x = np.mgrid[0:200, 0:100]
    picture = np.stack([y, 2 * x, 0 * x], axis=2).astype(np.uint8)
    image = prepare_photo("p", make_png(picture), (50, 25), Encoding(quality=95))
    assert image.data == prepare_photo("p", make_png(picture), (50, 25), Encoding(quality=95)).data
    decoded = np.asarray(decode("p", image.data)).astype(float)
    assert image.file_type == "jpg"
    assert decoded.shape == (50, 25, 3)
    boxes = picture.reshape(50, 4, 25, 4, 3).mean(axis=(1, 3))
    assert np.abs(decoded - boxes).mean() < 3


def test_quality_decides_the_size(make_jpeg):
    image = decode("p", make_jpeg(100, 100))
    assert len(encode_jpeg(image, Encoding(quality=30))) < len(
        encode_jpeg(image, Encoding(quality=95))
    )


def test_a_class_map_keeps_its_ids_when_resized(make_png):
    labels = np.random.default_rng(0).choice(np.array([0, 3, 5, 255], np.uint8), (64, 96))
    image = prepare_class_map("p", make_png(labels), (16, 24))
    resized = np.asarray(decode("p", image.data))
    assert resized.shape == (16, 24)
    assert set(np.unique(resized)) <= {0, 3, 5, 255}


@pytest.mark.parametrize("array", [np.full((4, 4), 6, np.uint8), np.zeros((4, 4, 3), np.uint8)])
def test_other_class_maps_are_rejected(make_png, array):
    assert reason_of(prepare_class_map, make_png(array), None) == "bad_class_map"

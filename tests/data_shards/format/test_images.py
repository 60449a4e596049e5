import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image

from data_shards.format.images import (
    Encoding,
    decode,
    decode_photo,
    decode_upright,
    encode_jpeg,
    encoder_name,
    prepare_class_map,
    prepare_photo,
)
from data_shards.format.pixels import grid_histogram, pixel_digest
from data_shards.format.sample import RejectedSample, Rows


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


PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image, file_format):
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_a_channel_are_rejected(channels):
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2 if channels == 3 else 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(4 * 2 * channels)) * 4)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert reason_of(prepare_photo, data, None, Encoding()) == "unsupported_mode"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_image_that_exif_turns_is_rejected(file_format):
    exif = Image.Exif()
    for orientation, reason in ((1, None), (6, "rotated")):
        exif[ExifTags.Base.Orientation] = orientation
        buffer = io.BytesIO()
        Image.new("RGB", (8, 4)).save(buffer, file_format, exif=exif)
        if reason is None:
            assert prepare_photo("p", buffer.getvalue(), None, Encoding()).height == 4
        else:
            assert reason_of(decode, buffer.getvalue()) == reason


def exif_block(orientation):
    """TIFF, little endian, with this one SHORT."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body


def png_of(depth, colour, row, height=2, before=b"", after=b""):
    channels = 3 if colour == 2 else 1
    width = len(row) * 8 // depth // channels
    pixels = (b"\0" + row) * height
    return png_file((height, width, depth, colour, 0), pixels, before, after)


def png_file(header, pixels, before=b"", after=b""):
    """Header: height, width, bits, colour type, whether interlaced; pixels: rows with filters."""
    height, width, depth, colour, interlaced = header
    packed = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(pixels))
    return PNG + chunk(b"IHDR", packed) + before + data + after + chunk(b"IEND", b"")


PASSES = ["16462646", "77777777", "56565656", "77777777"] * 2
PASSES[0], PASSES[4] = "16462646", "36463646"


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (9, 11), (16, 8), (2, 3)])
@pytest.mark.parametrize("lightest", [1, 256])
def test_a_png_that_lacks_pixels_is_rejected(interlaced, shape, lightest):
    grey = np.random.default_rng(0).integers(0, lightest, shape, np.uint8)
    passes = np.array(
        [[int(PASSES[y % 8][x % 8]) for x in range(shape[1])] for y in range(shape[0])]
    )
    rows = b""
    for number in range(1, 8) if interlaced else [0]:
        for row, members in zip(grey, passes == number, strict=True):
            chosen = row[members] if interlaced else row
            rows += b"\0" + chosen.tobytes() if len(chosen) else b""
    header = (*shape, 8, 0, interlaced)
    np.testing.assert_array_equal(decode_photo("p", png_file(header, rows)), grey)
    assert reason_of(decode_photo, png_file(header, rows[:-1])) == "damaged_image"
    assert reason_of(decode_photo, png_file(header, b"")) == "damaged_image"


@pytest.mark.parametrize("beside", [False, True])
def test_an_animation_beside_the_picture_is_rejected(beside):
    """DALI shows the first picture of the animation, Pillow the other one."""
    first, second = (Image.new("RGB", (8, 4), colour) for colour in ("red", "blue"))
    buffer = io.BytesIO()
    first.save(buffer, "PNG", save_all=True, append_images=[second], default_image=beside)
    if beside:
        assert reason_of(decode_photo, buffer.getvalue()) == "unsupported_mode"
    else:
        assert (decode_photo("p", buffer.getvalue()) == (255, 0, 0)).all()


@pytest.mark.parametrize("marker", [0xE0, 0xE2, 0xED, 0xFE])
@pytest.mark.parametrize("body", [b"\xff\xda", b"\xff\xd9\xff\xda\0\x0c", b"Exif\0\0\xff\xda"])
def test_no_segment_hides_an_orientation(make_jpeg, marker, body):
    data = make_jpeg(8, 16)
    turned = segment(0xE1, b"Exif\0\0" + exif_block(6))
    hidden = data[:2] + segment(marker, body) + turned + data[2:]
    assert Image.open(io.BytesIO(hidden)).getexif()[0x0112] == 6
    for function in (decode, decode_photo):
        assert reason_of(function, hidden) == "rotated"
    harmless = data[:2] + segment(marker, body) + data[2:]
    assert prepare_photo("p", harmless, None, Encoding()).data == harmless


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_says_its_orientation_before_or_after_its_pixels(place):
    block = chunk(b"eXIf", exif_block(3))
    assert reason_of(decode, png_of(8, 2, bytes(range(12)), **{place: block})) == "rotated"
    upright = png_of(8, 2, bytes(range(12)), **{place: chunk(b"eXIf", exif_block(1))})
    assert decode_photo("p", upright).shape == (2, 4, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(make_jpeg, orientation):
    data = make_jpeg(8, 16)
    data = data[:2] + segment(0xE1, b"Exif\0\0" + exif_block(orientation)) + data[2:]
    assert prepare_photo("p", data, None, Encoding()).data == data


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""What a reader does to stored pixels, as the EXIF standard says."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_photo_that_goes_into_no_shard_is_turned_upright(orientation, channels):
    row = bytes(range(0, 4 * channels * 20, 20))
    block = chunk(b"eXIf", exif_block(orientation))
    stored = np.frombuffer(row * 2, np.uint8).reshape(2, 4, channels)
    upright = UPRIGHT[orientation](np.broadcast_to(stored, (2, 4, 3)))
    data = png_of(8, 2 if channels == 3 else 0, row, after=block)
    np.testing.assert_array_equal(decode_upright("p", data), upright)


def test_a_photo_that_goes_into_no_shard_is_refused_as_in_a_build(make_png):
    refused = {
        "16 bits": png_of(16, 0, bytes(8)),
        "palette": encoded(Image.new("P", (4, 4)), "PNG"),
        "alpha": encoded(Image.new("RGBA", (4, 4)), "PNG"),
        "CMYK": encoded(Image.new("CMYK", (4, 4)), "JPEG"),
        "WebP": encoded(Image.new("RGB", (4, 4)), "WEBP"),
        "TIFF": encoded(Image.new("RGB", (4, 4)), "TIFF"),
        "GIF": encoded(Image.new("L", (4, 4)), "GIF"),
        "text": b"no image",
        "nothing": b"",
        "truncated": make_png(np.zeros((40, 40), np.uint8))[:-30],
        "gigapixel": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 20992, 10496, 8, 2, 0, 0, 0)),
        "no header first": PNG + chunk(b"CgBI", bytes(4)),
        "cut header": PNG + b"\0\0\0\rIHDR\0",
    }
    for kind, data in refused.items():
        with pytest.raises(RejectedSample) as in_build:
            prepare_photo("photo.jpg", data, None, Encoding())
        with pytest.raises(RejectedSample) as outside:
            decode_upright("photo.jpg", data)
        assert outside.value.args == in_build.value.args, kind
        assert outside.value.detail.startswith("photo.jpg "), kind


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_class_map_of_fewer_bits_is_rejected(depth):
    """Decoders, DALI too, scale its ids up: of 2 bits, vegetation (3) would be void."""
    assert reason_of(prepare_class_map, png_of(depth, 0, b"\x03"), None) == "bad_class_map"


def test_an_unreadable_exif_block_turns_nothing(make_jpeg):
    data = make_jpeg(8, 16)
    block = b"Exif\0\0" + b"X" * 8
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]
    assert prepare_photo("p", data, None, Encoding()).data == data


def test_garbage_that_libjpeg_only_warns_of_is_rejected(make_jpeg):
    data = bytearray(make_jpeg(128, 256))
    middle = len(data) * 3 // 4
    data[middle : middle + 2] = b"\xff\xd3"  # a restart marker where there is none
    Image.open(io.BytesIO(bytes(data))).load()  # Pillow takes it
    assert reason_of(decode_photo, bytes(data)) == "damaged_image"


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_png_with_a_wrong_checksum_is_rejected(make_png, kind):
    data = bytearray(make_png(np.zeros((40, 40, 3), np.uint8)))
    start = data.index(kind) - 4
    length = int.from_bytes(data[start : start + 4], "big")
    data[start + 8 + length] ^= 1
    for function in (decode, decode_photo):
        assert reason_of(function, bytes(data)) in {"damaged_image", "unknown_format"}


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"progressive": True}, {"quality": 9}],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_that_pillow_decodes(make_jpeg, options, mode):
    buffer = io.BytesIO()
    decode("p", make_jpeg(75, 123)).convert(mode).save(buffer, "JPEG", **options)
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(decode_photo("p", buffer.getvalue()), expected)
    np.testing.assert_array_equal(decode("p", buffer.getvalue()), expected)


def test_a_file_of_several_jpegs_is_its_first(make_jpeg):
    image = decode("p", make_jpeg(20, 30))
    buffer = io.BytesIO()
    image.save(buffer, "MPO", save_all=True, append_images=[image.rotate(180)], quality=100)
    prepared = prepare_photo("p", buffer.getvalue(), None, Encoding())
    assert prepared.file_type == "jpg"
    assert np.abs(decode_photo("p", prepared.data).astype(int) - np.asarray(image)).mean() < 3


def test_a_giant_is_rejected_before_it_is_decoded(make_png, make_jpeg):
    header = bytearray(make_png(np.zeros((4, 4), np.uint8)))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    assert reason_of(decode, bytes(header)) == "too_large"
    frame = bytearray(make_jpeg(4, 4))
    start = frame.index(b"\xff\xc0") + 5
    frame[start : start + 4] = (60000).to_bytes(2, "big") * 2
    assert reason_of(decode, bytes(frame)) == "too_large"


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


def test_the_area_filter_is_the_mean_of_the_pixels_that_a_pixel_covers(make_png):
    picture = np.random.default_rng(0).integers(0, 256, (60, 90), np.uint8)
    image = prepare_photo("p", make_png(picture), (20, 30), Encoding("area", 100))
    boxes = picture.reshape(20, 3, 30, 3).mean(axis=(1, 3))
    area = np.abs(decode_photo("p", image.data) - boxes).max()
    image = prepare_photo("p", make_png(picture), (20, 30), Encoding("lanczos", 100))
    assert area <= 2 < np.abs(decode_photo("p", image.data) - boxes).max()


def test_quality_and_chroma_are_those_of_the_jpeg(make_jpeg):
    image = decode("p", make_jpeg(100, 100))
    assert len(encode_jpeg(image, Encoding(quality=30))) < len(encode_jpeg(image, Encoding()))
    for chroma, code in (("4:2:0", "420"), ("4:4:4", "444")):
        data = encode_jpeg(image, Encoding(chroma=chroma))
        assert simplejpeg.decode_jpeg_header(data)[3] == code
        assert chroma in encoder_name(Encoding(chroma=chroma))


@pytest.mark.parametrize("size", [None, (10, 40), (40, 40), (20, 20)])
def test_rows_are_cut_before_resizing_and_the_rest_is_encoded_once(make_png, size):
    picture = np.full((40, 40, 3), 255, np.uint8)
    picture[10:30] = (np.arange(20) * 10)[:, None, None]
    crop = Rows(10, 30, 40)
    image = prepare_photo("p", make_png(picture), size, Encoding("area", 100, "4:4:4"), crop)
    expected = Image.fromarray(picture[10:30])
    if size is not None:
        expected = expected.resize((size[1], size[0]), Image.Resampling.BOX)
    decoded = decode_photo("p", image.data).astype(int)
    assert (image.file_type, image.height, image.width) == ("jpg", *decoded.shape[:2])
    assert np.abs(decoded - np.asarray(expected)).max() <= 2
    assert image.data == encode_jpeg(expected, Encoding("area", 100, "4:4:4"))


def test_an_image_of_another_height_is_not_cut(make_jpeg):
    arguments = (make_jpeg(41, 40), None, Encoding(), Rows(10, 30, 40))
    assert reason_of(prepare_photo, *arguments) == "bad_size"
    kept = prepare_photo("p", make_jpeg(40, 40), None, Encoding(), Rows(0, 40, 40))
    assert kept.data == make_jpeg(40, 40)


@pytest.mark.parametrize("size", [None, (20, 30)])
def test_histogram_and_digest_are_those_of_the_bytes_in_the_shard(make_jpeg, size):
    image = prepare_photo("p", make_jpeg(60, 90), size, Encoding())
    pixels = decode_photo("p", image.data)
    assert image.digest == pixel_digest(pixels)
    np.testing.assert_array_equal(image.histogram, grid_histogram(pixels))


def test_a_class_map_keeps_its_ids_when_resized(make_png):
    labels = np.random.default_rng(0).choice(np.array([0, 3, 5, 255], np.uint8), (64, 96))
    image = prepare_class_map("p", make_png(labels), (16, 24))
    resized = np.asarray(decode("p", image.data))
    assert resized.shape == (16, 24)
    assert set(np.unique(resized)) <= {0, 3, 5, 255}


@pytest.mark.parametrize("array", [np.full((4, 4), 6, np.uint8), np.zeros((4, 4, 3), np.uint8)])
def test_other_class_maps_are_rejected(make_png, array):
    assert reason_of(prepare_class_map, make_png(array), None) == "bad_class_map"

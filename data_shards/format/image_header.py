"""Image properties that are known before decoding."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from data_shards.format.sample import RejectedSample

FileType: TypeAlias = Literal["jpg", "png"]

JPEG_SIGNATURE, PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
JPEG_MODES = {"YCbCr": "RGB", "RGB": "RGB", "Gray": "L"}
PNG_HEADER = struct.Struct(">8s4x4sIIB")
"""Signature, the first chunk's name; width, height, bits a channel."""
PNG_LAYOUT = struct.Struct(">16xIIBB2xB")
"""Width, height, bits a channel, colour type; whether it is interlaced."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
WHOLE = ((0, 0, 1, 1),)
ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)),
    (1, 0, 2, 1),
)
"""Passes of a PNG, plain and interlaced: first row, first column, row step, column step."""

MAX_DEPTH = 8
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pillow's own limit, for every format."""

UPRIGHT, TURNED = 1, range(2, 9)
EXIF = (b"Exif\0\0", b"eXIf", b"Raw profile type exif")
"""A file with an EXIF block has one of these somewhere."""
XMP = ("xmp", "XML:com.adobe.xmp")
"""Key under which Pillow keeps XMP; only Pillow reads its orientation."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Header(NamedTuple):
    """Fields of an image header."""

    file_type: FileType
    mode: str
    """As Pillow names it."""
    depth: int = MAX_DEPTH
    """Bits a channel in the file."""


def read_header(name: str, data: bytes) -> tuple[Header, int]:
    """Read an image's header and its EXIF orientation, 1 to 8.

    Raises:
        RejectedSample: it is neither JPEG nor PNG, too large, too deep, or its header is broken;
            `name` is in the detail.
    """
    if data.startswith(JPEG_SIGNATURE):
        header = _jpeg_header(name, data)
    elif data.startswith(PNG_SIGNATURE):
        header = _png_header(name, data)
    else:
        what = "is not a JPEG or PNG file" if data else "is empty"
        raise RejectedSample("unknown_format", f"{name} {what}.")
    # A search through all bytes is faster than Pillow's open, and a segment can't hide anything.
    return header, _orientation(data) if any(sign in data for sign in EXIF) else UPRIGHT


def has_all_rows(png: bytes) -> bool:
    """Whether a PNG whose chunks are whole has as many pixels as its header says.

    Pillow leaves those that it lacks black; libpng refuses the file.
    """
    width, height, depth, colour, interlaced = PNG_LAYOUT.unpack_from(png)
    bits = depth * PNG_CHANNELS[colour]
    expected = 0
    for top, left, down, right in ADAM7 if interlaced else WHOLE:
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        if rows > 0 and columns > 0:
            expected += rows * (1 + -(-columns * bits // 8))
    stream = b"".join(_png_chunks(png, b"IDAT"))
    return len(zlib.decompressobj().decompress(stream, expected)) == expected


def _png_chunks(png: bytes, wanted: bytes) -> Iterator[bytes]:
    """The contents of a PNG's chunks of one name."""
    start = len(PNG_SIGNATURE)
    while start < len(png):
        length, name = struct.unpack_from(">I4s", png, start)
        if name == wanted:
            yield png[start + 8 : start + 8 + length]
        if name == b"IEND":
            return
        start += 12 + length


def damaged(name: str, error: Exception) -> RejectedSample:
    """The rejection of an image that a decoder refuses."""
    return RejectedSample("damaged_image", f"{name} does not decode: {error}.")


def _jpeg_header(name: str, data: bytes) -> Header:
    """Without Pillow, whose open takes ten times as long."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
    except Exception as error:
        raise damaged(name, error) from None
    _check_size(name, height, width)
    return Header("jpg", JPEG_MODES.get(colourspace, colourspace))


def _png_header(name: str, data: bytes) -> Header:
    try:
        _, chunk, width, height, depth = PNG_HEADER.unpack_from(data)
    except struct.error:
        raise damaged(name, ValueError("its header is cut short")) from None
    if chunk != b"IHDR":
        raise damaged(name, ValueError("it does not begin with IHDR"))
    _check_size(name, height, width)
    if depth > MAX_DEPTH:
        raise RejectedSample(
            "unsupported_mode", f"{name} has {depth} bits a channel; save it with {MAX_DEPTH} bits."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
    except UnidentifiedImageError:
        raise damaged(name, ValueError("its header is broken")) from None
    except Exception as error:  # Pillow raises whatever the broken bytes lead it to
        raise damaged(name, error) from None
    if getattr(image, "default_image", False):  # decoders differ in which picture they show
        raise RejectedSample("unsupported_mode", f"{name} has an animation; save a single picture.")
    return Header("png", image.mode, depth)


def _check_size(name: str, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise RejectedSample(
            "too_large",
            f"{name} is too large: {width} x {height} pixels, more than {MAX_PIXELS}.",
        )


def _orientation(data: bytes) -> int:
    """The orientation of an EXIF block anywhere in a file; other numbers turn nothing."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if image.format == "PNG":
            image.load()  # the block may come after the pixels
        for name in XMP:
            image.info.pop(name, None)
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # an unreadable block turns nothing
        return UPRIGHT
    return int(orientation) if orientation in TURNED else UPRIGHT

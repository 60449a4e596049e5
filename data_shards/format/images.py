"""Every image is decoded once before it enters a shard; some are cut or made smaller on the way."""

import io
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import PIL
import simplejpeg
from PIL import ExifTags, Image, ImageOps, features

from data_shards.format.classes import CLASS_COUNT, VOID
from data_shards.format.image_header import (
    MAX_DEPTH,
    UPRIGHT,
    FileType,
    Header,
    damaged,
    has_all_rows,
    read_header,
)
from data_shards.format.pixels import grid_histogram, pixel_digest
from data_shards.format.sample import RejectedSample, Rows

Filter: TypeAlias = Literal["area", "lanczos"]
Chroma: TypeAlias = Literal["4:2:0", "4:4:4"]

COLOURSPACES = {"RGB": "RGB", "L": "GRAY"}
"""Modes that every reader of our shards decodes to the same pixels, as libjpeg-turbo names them."""

FILTERS = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True, slots=True)
class Encoding:
    """Resize and JPEG options of an image.

    Args:
        filter: what resizes it.
        quality: of the JPEG, 1 to 100.
        chroma: whether the JPEG keeps colour at half the resolution or at all of it.
    """

    filter: Filter = "lanczos"
    quality: int = 90
    chroma: Chroma = "4:2:0"


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as it goes into a shard.

    Args:
        data: encoded bytes.
        file_type: what they are encoded as.
        height: rows.
        width: columns.
        histogram: int64 [3, 256] of a grid of its pixels, None for a class map.
        digest: of its pixels, None for a class map.
    """

    data: bytes
    file_type: FileType
    height: int
    width: int
    histogram: np.ndarray | None = None
    digest: bytes | None = None


def decode(name: str, data: bytes) -> Image.Image:
    """Decode all of an image.

    Raises:
        RejectedSample: it is not an image that a shard can hold; `name` is in the detail.
    """
    header = _open_upright(name, data)
    if header.file_type == "png":
        return _load(name, data)
    return Image.fromarray(_jpeg_pixels(name, data, header.mode))


def decode_photo(name: str, data: bytes) -> np.ndarray:
    """Decode all of a photograph: uint8 [H, W, 3], or [H, W] if it is grey.

    Raises:
        RejectedSample: it can't be decoded, or is neither RGB nor grey.
    """
    return _photo_pixels(name, data, _open_upright(name, data))


def decode_class_map(name: str, data: bytes) -> Image.Image:
    """Decode a class map to 8-bit grey.

    Raises:
        RejectedSample: it can't be decoded, or is not an 8-bit grey PNG. Of one with fewer bits,
            decoders scale the ids up.
    """
    if _open_upright(name, data) != ("png", "L", MAX_DEPTH):
        raise RejectedSample("bad_class_map", f"{name} is not an 8-bit grey PNG of class ids.")
    return _load(name, data)


def decode_upright(name: str, data: bytes) -> np.ndarray:
    """Decode a photograph that goes into no shard, turned as its EXIF orientation says.

    Returns:
        uint8 [H, W, 3], a grey one with three equal channels.

    Raises:
        RejectedSample: a build would reject it, turned or not.
    """
    header, orientation = read_header(name, data)
    pixels = _photo_pixels(name, data, header)
    if orientation != UPRIGHT:
        image = Image.fromarray(pixels)
        image.getexif()[ExifTags.Base.Orientation] = orientation
        pixels = np.asarray(ImageOps.exif_transpose(image))
    return np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels


def prepare_photo(
    name: str,
    data: bytes,
    size: tuple[int, int] | None,
    encoding: Encoding,
    crop: Rows | None = None,
    square: bool = False,
) -> PreparedImage:
    """Check a photograph, cut it to `crop` and bring it to `size`.

    Args:
        name: for messages.
        data: JPEG or PNG.
        size: (height, width), or None for the size it has. An image that is neither cut nor
            resized keeps its bytes.
        encoding: of an image that is cut or resized: once, after both.
        crop: the rows to keep.
        square: whether it has to be square.

    Raises:
        RejectedSample: it can't be decoded, is neither RGB nor grey, is too high for `crop`, or
            has to be square and is not.
    """
    header = _open_upright(name, data)
    file_type = header.file_type
    pixels = _photo_pixels(name, data, header)
    height = len(pixels)
    if crop is not None and height != crop.height:
        raise RejectedSample(
            "bad_size", f"{name} has {height} rows; the rows to keep are known for {crop.height}."
        )
    if crop is not None:
        pixels = pixels[crop.top : crop.bottom]
    if square and pixels.shape[0] != pixels.shape[1]:
        shape = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise RejectedSample("not_square", f"{name} has {shape} pixels, not square: crop it.")
    size = size or pixels.shape[:2]
    if pixels.shape[:2] != size or len(pixels) != height:
        image = Image.fromarray(pixels)
        if (image.height, image.width) != size:
            image = image.resize((size[1], size[0]), FILTERS[encoding.filter])
        data, file_type = encode_jpeg(image, encoding), "jpg"
        # Statistics and digest are of the bytes in the shard, so that `verify` finds the same.
        pixels = _jpeg_pixels(name, data, image.mode)
    return PreparedImage(data, file_type, *size, grid_histogram(pixels), pixel_digest(pixels))


def prepare_class_map(name: str, data: bytes, size: tuple[int, int] | None) -> PreparedImage:
    """Check a class map (8-bit grey PNG of class ids) and bring it to `size` (height, width).

    Raises:
        RejectedSample: it can't be decoded, is not 8-bit grey, or has ids that are not classes.
    """
    image = decode_class_map(name, data)
    counts = image.histogram()
    if any(counts[CLASS_COUNT:VOID]):
        raise RejectedSample(
            "bad_class_map", f"{name} has ids other than 0 to {CLASS_COUNT - 1} and {VOID} (void)."
        )
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
        data = encode_png(image)
    return PreparedImage(data, "png", image.height, image.width)


def encode_jpeg(image: Image.Image, encoding: Encoding) -> bytes:
    """The same bytes for the same pixels, Pillow and libjpeg."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=encoding.quality, subsampling=encoding.chroma)
    return buffer.getvalue()


def encode_png(image: Image.Image) -> bytes:
    """The same bytes for the same pixels, Pillow and zlib."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encoder_name(encoding: Encoding) -> str:
    """Return the encoding parameters of a resized image, for the manifest."""
    return f"{jpeg_library()}, {encoding.filter}, quality {encoding.quality}, {encoding.chroma}"


def jpeg_library() -> str:
    """Return what `encode_jpeg` depends on in addition to its arguments."""
    turbo = features.version("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, libjpeg-turbo {turbo}"


def _open_upright(name: str, data: bytes) -> Header:
    """Read the header; reject images that an EXIF orientation turns."""
    header, orientation = read_header(name, data)
    if orientation != UPRIGHT:
        raise RejectedSample(
            "rotated", f"{name} is turned by its EXIF orientation; save it with turned pixels."
        )
    return header


def _photo_pixels(name: str, data: bytes, header: Header) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] of an image whose header was read."""
    if header.file_type == "jpg":
        return _jpeg_pixels(name, data, header.mode)
    _check_mode(name, header.mode)
    return np.asarray(_load(name, data))


def _jpeg_pixels(name: str, data: bytes, mode: str) -> np.ndarray:
    # Strict: what libjpeg only warns of (a truncated file, broken entropy codes) is damage too.
    _check_mode(name, mode)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, COLOURSPACES[mode], strict=True)
    except Exception as error:
        raise damaged(name, error) from None
    return pixels[:, :, 0] if mode == "L" else pixels


def _load(name: str, data: bytes) -> Image.Image:
    """Decode a PNG and check what Pillow skips as it decodes: the checksums and the number of the
    pixels."""
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
        # Counting takes as long as decoding, and pixels that lack are black in the last row.
        black = image.crop((0, image.height - 1, image.width, image.height)).getbbox() is None
        if (black or "interlace" in image.info) and not has_all_rows(data):
            raise ValueError("it has fewer pixels than its header says")
    except Exception as error:
        raise damaged(name, error) from None
    return image


def _check_mode(name: str, mode: str) -> None:
    if mode not in COLOURSPACES:
        raise RejectedSample(
            "unsupported_mode", f"{name} has colour mode {mode}; save it as RGB or grey."
        )

"""Every image is decoded once before it enters a shard; some are made smaller on the way."""

import io
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from data_shards.classes import CLASS_COUNT, VOID
from data_shards.pixels import grid_histogram
from data_shards.sample import RejectedSample

FileType: TypeAlias = Literal["jpg", "png"]
FORMATS = ("JPEG", "PNG")
MODES = {"RGB", "L"}
"""What every reader of our shards decodes to the same pixels."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as it goes into a shard.

    Args:
        data: encoded bytes.
        file_type: what they are encoded as.
        height: rows.
        width: columns.
        histogram: int64 [3, 256] of a grid of its pixels, None for a class map.
    """

    data: bytes
    file_type: FileType
    height: int
    width: int
    histogram: np.ndarray | None


def decode(name: str, data: bytes) -> Image.Image:
    """Decode all of an image.

    Raises:
        RejectedSample: `unknown_format` or `damaged_image`, with `name` in the detail.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RejectedSample("unknown_format", f"{name} is not a JPEG or PNG file.") from None
    except Image.DecompressionBombError as error:
        raise RejectedSample("too_large", f"{name} is too large: {error}.") from None
    except Exception as error:
        raise _damaged(name, error) from None
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever the broken bytes lead them to
        raise _damaged(name, error) from None
    return image


def prepare_photo(
    name: str, data: bytes, size: tuple[int, int] | None, quality: int
) -> PreparedImage:
    """Check a photograph and bring it to `size`.

    Args:
        name: for messages.
        data: JPEG or PNG.
        size: (height, width), or None for the original bytes. An image that has the size already
            keeps its bytes.
        quality: of the JPEG that a resized image becomes, 1 to 100.

    Raises:
        RejectedSample: it can't be decoded, or is neither RGB nor grey.
    """
    image = decode(name, data)
    file_type: FileType = "jpg" if image.format == "JPEG" else "png"
    if image.mode not in MODES:
        raise RejectedSample(
            "unsupported_mode", f"{name} has colour mode {image.mode}; save it as RGB or grey."
        )
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
        data, file_type = encode_jpeg(image, quality), "jpg"
    return PreparedImage(data, file_type, image.height, image.width, grid_histogram(image))


def prepare_class_map(name: str, data: bytes, size: tuple[int, int] | None) -> PreparedImage:
    """Check a class map (8-bit grey PNG of class ids) and bring it to `size` (height, width).

    Raises:
        RejectedSample: it can't be decoded, is not 8-bit grey, or has ids that are no class.
    """
    image = decode(name, data)
    if image.format != "PNG" or image.mode != "L":
        raise RejectedSample("bad_class_map", f"{name} is not an 8-bit grey PNG of class ids.")
    counts = image.histogram()
    if any(counts[CLASS_COUNT:VOID]):
        raise RejectedSample(
            "bad_class_map", f"{name} has ids other than 0 to {CLASS_COUNT - 1} and {VOID} (void)."
        )
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
        data = encode_png(image)
    return PreparedImage(data, "png", image.height, image.width, None)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The same bytes for the same pixels, Pillow and libjpeg."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(image: Image.Image) -> bytes:
    """The same bytes for the same pixels, Pillow and zlib."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encoder_name() -> str:
    """What makes the bytes of a resized image, for the manifest."""
    turbo = features.version("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, libjpeg-turbo {turbo}, Lanczos"


def _damaged(name: str, error: Exception) -> RejectedSample:
    return RejectedSample("damaged_image", f"{name} does not decode: {error}.")

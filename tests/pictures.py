"""Images that decoders have work with."""

from io import BytesIO

import numpy as np
from PIL import Image

JPEG_KINDS = [
    {"quality": 90},
    {"quality": 60, "subsampling": 0},
    {"quality": 75, "subsampling": 1},
    {"quality": 80, "progressive": True},
]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A random image with structure at several scales, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-20, 21, (height, width, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """Bytes of an image file."""
    out = BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()

"""The one record that every source yields and every writer takes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from pydantic import JsonValue

JSON: TypeAlias = JsonValue
Kind: TypeAlias = Literal["pairs", "aerial", "ground"]
"""What the samples of a split have: pairs of views, aerial images only, or ground images only."""

IMAGES = ("ground", "aerial", "seg", "aligned")
"""The images a sample may have, in the order of the index."""

PARTS = (*IMAGES, "meta")
"""Everything a sample may have in a shard, in the order of the index."""

PART_FILES = frozenset(
    {"ground.jpg", "ground.png", "aerial.jpg", "aerial.png", "seg.png", "aligned.jpg"}
)
"""Names that `Sample.parts` may use; `meta.json` is made from `Sample.meta`."""

MAX_SEMI_POSITIVES = 3
"""Largest number of semi-positives of a sample in the index."""


@dataclass(frozen=True, slots=True)
class Meta:
    """Metadata of a sample; None is unknown.

    Args:
        source_id: the data set's own name of the sample.
        lat: degrees north, -90 to 90.
        lon: degrees east, -180 to 180.
        utm: easting and northing, metres.
        heading: of the panorama's centre column, degrees clockwise from north.
        extent_m: the aerial tile's side on the ground, metres.
        elevation: of the panorama's bottom and top edge, degrees above the horizon.
        positive: the tile of the `aerial` split that shows the place best, by the number in its
            key; None where pairs or positions say what belongs together.
        semi_positives: other tiles that show the place, by number; at most `MAX_SEMI_POSITIVES`.
    """

    source_id: str
    lat: float | None = None
    lon: float | None = None
    utm: tuple[float, float] | None = None
    heading: float | None = None
    extent_m: float | None = None
    elevation: tuple[float, float] | None = None
    positive: int | None = None
    semi_positives: tuple[int, ...] = ()

    def to_json(self) -> bytes:
        """The bytes of `meta.json`: one line, the same for the same values."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "Meta":
        """Parse what `to_json` of this or an older version wrote.

        Raises:
            ValueError: it was something else.
        """
        content = json.loads(data)
        try:
            pairs = {
                name: tuple(value) for name, value in content.items() if isinstance(value, list)
            }
            return cls(**{**content, **pairs})
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not the meta.json of a sample ({error})") from error


class Rows(NamedTuple):
    """The rows of an image that its data set uses: `top` up to `bottom`, of `height` in all."""

    top: int
    bottom: int
    height: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample on its way into a shard.

    Args:
        meta: becomes `meta.json` and columns of the index.
        parts: encoded bytes by name, a subset of `PART_FILES`, at most one file an image.
            `seg.png` holds class ids (`data_shards.format.classes`) as 8-bit grey and is as large
            as the ground image.
        crops: what the writer keeps of an image, by the image's name. It cuts between decoding
            and resizing, so that pixels are encoded once; an image of another height is rejected.
    """

    meta: Meta
    parts: Mapping[str, bytes]
    crops: Mapping[str, Rows] = field(default_factory=dict)


class RejectedSample(Exception):  # noqa: N818  (an outcome that is counted, not a failure)
    """A sample that can't be used. It is listed and counted; the build continues.

    Args:
        reason: a short snake_case token: the label of a metric.
        detail: one sentence that names the file.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

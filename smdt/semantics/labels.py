"""Our class of each label of a trained network."""

from collections.abc import Sequence

from data_shards.format.classes import CITYSCAPES_TO_CLASS, CLASS_COUNT, CLASS_NAMES

CLASSES = tuple(CLASS_NAMES[label] for label in range(CLASS_COUNT))

CITYSCAPES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Labels of Cityscapes' benchmark by train id."""


def groups(labels: Sequence[str]) -> tuple[int, ...]:
    """Return the class of each label (pure).

    Ours and Cityscapes' 19 are known, the latter also under Hugging Face's generic names
    (`LABEL_0`).

    Raises:
        ValueError: they are neither.
    """
    plain = tuple(label.lower() for label in labels)
    if plain == CLASSES:
        return tuple(range(CLASS_COUNT))
    unnamed = tuple(f"label_{number}" for number in range(len(CITYSCAPES)))
    if plain in (CITYSCAPES, unnamed):
        return tuple(int(CITYSCAPES_TO_CLASS[number]) for number in range(len(CITYSCAPES)))
    shown = ", ".join(labels[:3])
    raise ValueError(
        f"its {len(labels)} labels ({shown}, ...) are neither Cityscapes' 19 nor {CLASSES}"
    )

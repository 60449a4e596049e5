import numpy as np

from data_shards.format.classes import (
    CITYSCAPES_TO_CLASS,
    CLASS_COLOURS,
    CLASS_NAMES,
    CVUSA_TO_CLASS,
    PALETTE,
    VOID,
)

CITYSCAPES = [
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider"),
    *("car", "truck", "bus", "train", "motorcycle", "bicycle"),
]
GROUPS = {
    "sky": {"sky"},
    "building": {"building", "wall", "fence"},
    "road": {"road", "sidewalk", "terrain"},
    "vegetation": {"vegetation"},
    "vehicle": {"car", "truck", "bus", "train", "motorcycle", "bicycle"},
    "object": {"pole", "traffic light", "traffic sign", "person", "rider"},
}


def test_cityscapes_groups_by_name():
    for train_id, name in enumerate(CITYSCAPES):
        assert name in GROUPS[CLASS_NAMES[CITYSCAPES_TO_CLASS[train_id]]]
    assert (CITYSCAPES_TO_CLASS[len(CITYSCAPES) :] == VOID).all()


def test_cvusa_values_outside_its_four_are_void():
    assert [CLASS_NAMES[label] for label in CVUSA_TO_CLASS[:4]] == [
        "sky",
        "building",
        "road",
        "vegetation",
    ]
    assert (CVUSA_TO_CLASS[4:] == VOID).all()


def test_colours_tell_classes_apart():
    assert set(CLASS_COLOURS) == set(CLASS_NAMES)
    assert len(set(CLASS_COLOURS.values())) == len(CLASS_NAMES)
    for label, colour in CLASS_COLOURS.items():
        assert tuple(PALETTE[np.uint8(label)]) == colour

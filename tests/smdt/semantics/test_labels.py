import pytest

from data_shards.format.classes import BUILDING, OBJECT, ROAD, SKY, VEGETATION, VEHICLE
from smdt.semantics.labels import CITYSCAPES, CLASSES, groups

BY_NAME = {
    ROAD: {"road", "sidewalk", "terrain"},
    BUILDING: {"building", "wall", "fence"},
    OBJECT: {"pole", "traffic light", "traffic sign", "person", "rider"},
    VEGETATION: {"vegetation"},
    SKY: {"sky"},
    VEHICLE: {"car", "truck", "bus", "train", "motorcycle", "bicycle"},
}


def test_cityscapes_labels_fall_into_the_groups_of_their_names():
    for label, group in zip(CITYSCAPES, groups(CITYSCAPES), strict=True):
        assert label in BY_NAME[group]
    assert sum(map(len, BY_NAME.values())) == len(CITYSCAPES) == 19


def test_names_may_be_capitals_or_numbers_and_ours_are_themselves():
    assert groups([name.title() for name in CITYSCAPES]) == groups(CITYSCAPES)
    assert groups([f"LABEL_{n}" for n in range(19)]) == groups(CITYSCAPES)
    assert groups(CLASSES) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("labels", [CITYSCAPES[::-1], ["wall", "floor"], [], CITYSCAPES[:18]])
def test_other_labels_are_refused(labels):
    with pytest.raises(ValueError, match=f"its {len(labels)} labels"):
        groups(labels)

"""Classes of a class map, their colours, and how other label sets group into them."""

import numpy as np

SKY, BUILDING, ROAD, VEGETATION, VEHICLE, OBJECT = range(6)
VOID = 255

CLASS_NAMES: dict[int, str] = {
    SKY: "sky",
    BUILDING: "building",
    ROAD: "road",  # with sidewalk and terrain
    VEGETATION: "vegetation",
    VEHICLE: "vehicle",
    OBJECT: "object",  # pole, sign, person
    VOID: "void",
}

CLASS_COUNT = 6
"""Classes without void; their ids are 0 to 5."""

CLASS_COLOURS: dict[int, tuple[int, int, int]] = {
    SKY: (70, 130, 180),
    BUILDING: (70, 70, 70),
    ROAD: (128, 64, 128),
    VEGETATION: (107, 142, 35),
    VEHICLE: (0, 0, 142),
    OBJECT: (220, 220, 0),
    VOID: (0, 0, 0),
}


def _lookup(grouping: dict[int, int]) -> np.ndarray:
    """uint8 [256]: foreign id -> ours; ids that `grouping` doesn't name are void."""
    table = np.full(256, VOID, dtype=np.uint8)
    for foreign, ours in grouping.items():
        table[foreign] = ours
    table.flags.writeable = False
    return table


def _palette() -> np.ndarray:
    colours = np.zeros((256, 3), dtype=np.uint8)
    for label, colour in CLASS_COLOURS.items():
        colours[label] = colour
    colours.flags.writeable = False
    return colours


PALETTE = _palette()
"""uint8 [256, 3]: RGB of a class id; `PALETTE[class_map]` colours a map."""

CITYSCAPES_TO_CLASS = _lookup(
    {
        0: ROAD,
        1: ROAD,  # sidewalk
        2: BUILDING,
        3: BUILDING,  # wall
        4: BUILDING,  # fence
        5: OBJECT,  # pole
        6: OBJECT,  # traffic light
        7: OBJECT,  # traffic sign
        8: VEGETATION,
        9: ROAD,  # terrain
        10: SKY,
        11: OBJECT,  # person
        12: OBJECT,  # rider
        13: VEHICLE,  # car
        14: VEHICLE,  # truck
        15: VEHICLE,  # bus
        16: VEHICLE,  # train
        17: VEHICLE,  # motorcycle
        18: VEHICLE,  # bicycle
    }
)
"""uint8 [256]: train id of Cityscapes' 19 classes -> class id."""

CVUSA_TO_CLASS = _lookup({0: SKY, 1: BUILDING, 2: ROAD, 3: VEGETATION})
"""uint8 [256]: value in a CVUSA annotation -> class id (its 1 is building and everything else)."""

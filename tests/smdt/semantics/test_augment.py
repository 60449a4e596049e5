import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from smdt.geometry.augment import AugmentConfig, draw
from smdt.semantics.augment import ClassMasking, SemanticsConfig, draw_class_masking

IDS = np.array([0, 1, 2, 3, 4, 5, 255], dtype=np.uint8)
EVERYTHING = SemanticsConfig(
    keep={"vegetation": 0.3, "road": 0.3}, remove={"vehicle": 0.5, "sky": 0.5, "road": 0.5}
)


def images(count, seed=0):
    generator = np.random.default_rng(seed)
    ground = generator.integers(1, 255, (count, 3, 6, 9), dtype=np.uint8)
    return ground, generator.choice(IDS, (count, 6, 9))


def painted(ground, classes, kept, removed):
    """Pixel by pixel."""
    result = ground.copy()
    for b in range(len(ground)):
        for i in range(ground.shape[2]):
            for j in range(ground.shape[3]):
                label = classes[b, i, j]
                if any(kept[b]) and not (label < 6 and kept[b][label]):
                    result[b, :, i, j] = 255
                if label < 6 and removed[b][label]:
                    result[b, :, i, j] = 0
    return result


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 12), min_size=1, max_size=3), st.integers(0, 1000))
def test_what_is_drawn_is_painted_pixel_by_pixel(flags, seed):
    drawn = np.array(flags).reshape(-1, 2, 6)
    kept, removed = drawn[:, 0], drawn[:, 1]
    ground, classes = images(len(flags), seed)
    result = ClassMasking(kept, removed).apply(torch.from_numpy(ground), torch.from_numpy(classes))
    assert np.array_equal(result.numpy(), painted(ground, classes, kept, removed))


def test_nothing_is_painted_unless_it_is_asked_for():
    ground, classes = (torch.from_numpy(each) for each in images(4))
    drawn = draw_class_masking(SemanticsConfig(), 0, 0, np.arange(4))
    assert torch.equal(drawn.apply(ground, classes), ground)
    assert not SemanticsConfig(keep={"sky": 0.0}).needs_classes
    assert EVERYTHING.needs_classes


def test_a_class_is_drawn_as_often_as_the_configuration_says():
    drawn = draw_class_masking(EVERYTHING, 1, 2, np.arange(4000))
    kept, removed = drawn.kept.mean(axis=0), drawn.removed.mean(axis=0)
    assert kept == pytest.approx([0, 0, 0.3, 0.3, 0, 0], abs=0.03)
    assert removed == pytest.approx([0.5, 0, 0.5, 0, 0.5, 0], abs=0.03)
    # Classes are drawn for themselves.
    assert (drawn.kept[:, 2] & drawn.kept[:, 3]).mean() == pytest.approx(0.09, abs=0.02)


def test_a_draw_is_of_the_sample_and_epoch_and_not_of_its_batch():
    together = draw_class_masking(EVERYTHING, 0, 3, np.arange(50))
    for sample_id in (0, 17, 49):
        alone = draw_class_masking(EVERYTHING, 0, 3, np.array([sample_id]))
        assert np.array_equal(alone.kept[0], together.kept[sample_id])
        assert np.array_equal(alone.removed[0], together.removed[sample_id])
    later = draw_class_masking(EVERYTHING, 0, 4, np.arange(50))
    assert not np.array_equal(later.removed, together.removed)


def test_another_class_in_the_configuration_changes_no_draw():
    fewer = SemanticsConfig(remove={"vehicle": 0.5})
    ids = np.arange(50)
    assert np.array_equal(
        draw_class_masking(fewer, 0, 0, ids).removed[:, 4],
        draw_class_masking(EVERYTHING, 0, 0, ids).removed[:, 4],
    )


def test_painting_then_turning_is_turning_both_then_painting():
    ground, classes = (torch.from_numpy(each) for each in images(20))
    drawn = draw_class_masking(EVERYTHING, 0, 0, np.arange(20))
    moved = draw(AugmentConfig(turn=True, mirror=True), list(range(20)))
    first = moved.apply(drawn.apply(ground, classes))
    turned = moved.apply(classes.unsqueeze(1)).squeeze(1)
    assert torch.equal(first, drawn.apply(moved.apply(ground), turned))
    assert not torch.equal(first, moved.apply(ground))


@pytest.mark.parametrize(("name", "nearest"), [("vehicel", "vehicle"), ("skies", "sky")])
def test_an_unknown_class_is_refused_with_the_nearest_one(name, nearest):
    with pytest.raises(ValidationError, match=f"'{name}' is not a class; did you mean '{nearest}'"):
        SemanticsConfig(keep={name: 0.1})


def test_void_is_no_class_to_keep_and_a_probability_is_at_most_one():
    with pytest.raises(ValidationError, match="'void' is not a class"):
        SemanticsConfig(keep={"void": 0.1})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        SemanticsConfig(keep={"sky": 1.5})

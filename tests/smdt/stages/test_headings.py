"""Panoramas that were rolled, with their heading said, are the same panoramas to every stage.

The oracle is numpy's `roll`, before the shards are built or on the decoded images.
"""

import random
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smdt.data.batch import Batch
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.geometry.view import resize
from smdt.inference.align import open_alignment
from smdt.inference.annotate import Annotation, annotate, finish
from smdt.stages.alignment.config import AlignmentConfig
from smdt.stages.alignment.stage import DISCRIMINATORS, GENERATORS, AlignmentStage
from smdt.stages.evaluation import evaluate_stage
from smdt.stages.registry import references
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.retrieval.stage import RetrievalStage
from smdt.stages.segmentation.config import SegmentationConfig
from smdt.stages.segmentation.stage import SegmentationStage
from smdt.training.loop.stage import StepContext, equal_slices
from tests.checkpoints import UntrainedAlignment
from tests.plain_engine import PlainEngine
from tests.rolled import PAIRS, WIDTH, build_pairs, rolled
from tests.training_batches import training_batches

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COUNT = PAIRS["train"]
SIZE = (32, 64)
KINDS = ("raw", "polar", "mixed", "aligned")
TINY = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}

rolls = st.lists(st.integers(-2 * WIDTH, 2 * WIDTH), min_size=COUNT, max_size=COUNT)
epochs = st.integers(0, 50)
chunks = st.sampled_from([1, 2, 3])
mirrors = st.booleans()
all_turns = st.sampled_from([False, True, "quarters"])
tile_turns = st.sampled_from([False, "quarters"])
views = st.sampled_from([(360, 360), (90, 90), (70, 360)])
paints = st.fixed_dictionaries(
    {
        "keep": st.sampled_from([{}, {"vegetation": 0.5}]),
        "remove": st.sampled_from([{}, {"sky": 0.5, "road": 0.5}]),
    }
)


@pytest.fixture(scope="module", params=["one size", "many sizes"])
def data_sets(request, tmp_path_factory):
    """Shards with north in the middle, and of the same panoramas rolled."""
    root = tmp_path_factory.mktemp("rolled")
    widths = (WIDTH,) if request.param == "one size" else (WIDTH, 70, 84)
    north, turned = (build_pairs(root / f"{by}", by, widths) for by in (0, 29))
    alignment = open_alignment(UntrainedAlignment.save(north, root).folder, CPU)
    made = []
    for shards in (north, turned):
        job = Annotation(str(shards), str(shards.parent / "aligned"), batch=3, max_missing=0)
        annotate(job, alignment, CPU, 0, 1, lambda samples: None)
        finish(job)
        made.append(Path(job.out))
    return made


@pytest.fixture(scope="module")
def batches(data_sets):
    """The training pairs of each data set, with all views."""
    return [next(iter(whole_split(shards, "train"))) for shards in data_sets]


def whole_split(shards, split):
    return EvaluationLoader(
        Split.open(shards, split),
        views=("ground", "aerial", "seg", "aligned"),
        batch=COUNT,
        rank=0,
        world_size=1,
        device=CPU,
    )


def common(stage, shards):
    return {
        "stage": stage,
        "run": {"name": "test", "out": str(shards / "run")},
        "data": {"shards": str(shards), "decode_threads": 1, "read_threads": 1},
        "batch": {"global": COUNT},
        "evaluation": {"batch": 3},
    }


def alignment_config(shards, **sections):
    return AlignmentConfig.model_validate(
        {
            **common("alignment", shards),
            "geometry": {"panorama_size": SIZE, "elevation_deg": (-30, 30)},
            "model": {"generator_width": 2, "discriminator_width": 2},
            "precision": "fp32",
            **sections,
        }
    )


def retrieval_config(shards, aerial="mixed", **sections):
    return RetrievalConfig.model_validate(
        {
            **common("retrieval", shards),
            "aerial": aerial,
            "geometry": {"panorama_size": SIZE, "elevation_deg": (-30, 30)},
            "model": {"dropout": 0.0, "width": 32, "layers": 2},
            **sections,
        }
    )


def segmentation_config(shards, **sections):
    model = {"image_size": (32, 64), "settings": TINY}
    return SegmentationConfig.model_validate(
        {**common("segmentation", shards), "model": model, **sections}
    )


def equal(a, b):
    """Whether two results of a stage agree to the pixel."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return all(equal(one, other) for one, other in zip(a, b, strict=True))
    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def same_to(augmented, batches: list[Batch], by: list[int], epoch: int, count: int) -> bool:
    """Whether what a stage sees of each chunk is the same of all of a batch's rolled copies."""
    plain, turned = (replace(batch, epoch=epoch) for batch in batches)
    return all(
        equal(augmented(plain, part, 3), augmented(other, part, 3))
        for part in equal_slices(COUNT, count)
        for other in (turned, rolled(plain, by), rolled(turned, by))
    )


def test_the_shards_hold_the_panoramas_rolled_as_their_headings_say(batches):
    plain, turned = batches
    assert not plain.heading_deg.any()
    assert turned.heading_deg.all()
    widths = [image.shape[1] for image in plain.images["ground"]]
    columns = np.rint(turned.heading_deg * widths / 360).astype(int)
    for view in ("ground", "seg"):
        for a, b, by in zip(plain.images[view], turned.images[view], columns, strict=True):
            assert np.array_equal(np.roll(np.asarray(a), -by, axis=1), np.asarray(b))


@pytest.mark.parametrize("aerial", KINDS)
@given(data=st.data(), by=rolls, epoch=epochs, count=chunks, mirror=mirrors)
@settings(max_examples=10)
def test_retrieval_sees_the_same(data_sets, batches, aerial, data, by, epoch, count, mirror):
    config = retrieval_config(
        data_sets[0],
        aerial,
        augment={
            "turn": data.draw(tile_turns if aerial == "raw" else all_turns, "turn"),
            "mirror": mirror,
            "fov_deg": data.draw(views, "fov_deg"),
            "unknown_heading": data.draw(st.booleans(), "unknown_heading"),
        },
        semantics=data.draw(paints, "semantics"),
        evaluation={
            "fov_deg": data.draw(st.sampled_from([360, 90]), "evaluated"),
            "unknown_heading": data.draw(st.booleans(), "evaluated without heading"),
        },
    )
    stage = RetrievalStage(config)
    with torch.no_grad():
        assert same_to(stage.augmented, batches, by, epoch, count)
        assert same_to(lambda batch, rows, _: stage.images(batch, rows), batches, by, epoch, count)
        for view in stage.views:
            assert same_to(lambda b, _, __, v=view: stage.seen(b, v), batches, by, epoch, 1)
    ground, _ = stage.images(batches[1], slice(0, COUNT))
    assert torch.equal(ground, resize(batches[0].images["ground"], SIZE))


@given(by=rolls, epoch=epochs, count=chunks, turn=all_turns, mirror=mirrors, semantics=paints)
@settings(max_examples=15)
def test_alignment_sees_the_same(data_sets, batches, by, epoch, count, turn, mirror, semantics):
    augment = {"turn": turn, "mirror": mirror}
    stage = AlignmentStage(alignment_config(data_sets[0], augment=augment, semantics=semantics))
    assert same_to(stage.augmented, batches, by, epoch, count)
    assert same_to(lambda batch, rows, _: stage.inputs(batch, rows), batches, by, epoch, count)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [False, True, "quarters"])
def test_segmentation_sees_the_same(data_sets, batches, turn, mirror):
    augment = {"turn": turn, "mirror": mirror}
    stage = SegmentationStage(segmentation_config(data_sets[0], augment=augment))
    draws = random.Random(0)
    for epoch in range(5):
        by = [draws.randrange(-WIDTH, WIDTH) for _ in range(COUNT)]
        assert same_to(stage.augmented, batches, by, epoch, 2)


@given(
    by=rolls, epoch=epochs, turn=all_turns, mirror=mirrors, fov=st.sampled_from([25.0, 90.0, 200.0])
)
@settings(max_examples=15)
def test_a_photo_of_unknown_heading_is_a_piece_of_its_panorama_in_the_middle(
    data_sets, batches, by, epoch, turn, mirror, fov
):
    """Oracle: of all pieces of that width, mirrored or not, one is what stands in the middle."""
    augment = {"turn": turn, "mirror": mirror, "fov_deg": (fov, fov), "unknown_heading": True}
    stage = RetrievalStage(retrieval_config(data_sets[0], augment=augment))
    batch = replace(rolled(batches[0], by), epoch=epoch)
    whole = slice(0, COUNT)
    shown, _ = stage.augmented(batch, whole, 3)
    kept = round(fov * SIZE[1] / 360)
    first = SIZE[1] // 2 - kept // 2
    inside = slice(first, first + kept)
    for photo, panorama in zip(shown, stage.images(batches[0], whole)[0], strict=True):
        assert not photo[..., :first].any()
        assert not photo[..., first + kept :].any()
        sources = [panorama, panorama.flip(2)] if mirror else [panorama]
        pieces = (each.roll(-by, 2)[..., :kept] for each in sources for by in range(SIZE[1]))
        assert any(torch.equal(photo[..., inside], piece) for piece in pieces)


@pytest.mark.parametrize("count", [1, 2])
def test_the_steps_of_the_networks_are_the_same(data_sets, alone, count):
    context = StepContext(0, 3, 0, 1, count, CPU, 1.0)
    augment = {"turn": True, "mirror": True}
    paint = {"remove": {"road": 0.5}}
    losses = {}
    for name, shards in zip(("plain", "turned"), data_sets, strict=True):
        batch = next(training_batches(alignment_config(shards), 1))
        torch.manual_seed(0)
        retrieval = RetrievalStage(retrieval_config(data_sets[0], augment=augment, semantics=paint))
        gan = AlignmentStage(alignment_config(data_sets[0], augment=augment, semantics=paint))
        segmentation = SegmentationStage(segmentation_config(data_sets[0], augment=augment))
        gan_engines = {
            GENERATORS: PlainEngine(gan.generators),
            DISCRIMINATORS: PlainEngine(gan.discriminators),
        }
        losses[name] = [
            {term: float(value) for term, value in made.items()}
            for made in (
                retrieval.step({"two_tower": PlainEngine(retrieval.towers)}, batch, context),
                gan.step(gan_engines, batch, context),
                segmentation.step(
                    {"segmenter": PlainEngine(segmentation.segmenter)}, batch, context
                ),
            )
        ]
    assert losses["plain"] == losses["turned"]


@pytest.mark.parametrize(
    "configured",
    [
        retrieval_config,
        lambda shards: retrieval_config(
            shards, evaluation={"fov_deg": 90, "unknown_heading": True, "batch": 3}
        ),
        alignment_config,
        segmentation_config,
    ],
    ids=["retrieval", "photos", "alignment", "segmentation"],
)
def test_evaluations_and_what_they_are_compared_with_are_the_same(data_sets, configured):
    found = []
    for shards in data_sets:
        config = configured(shards)
        torch.manual_seed(0)
        stage = {
            "retrieval": RetrievalStage,
            "alignment": AlignmentStage,
            "segmentation": SegmentationStage,
        }[config.stage](config)
        evaluation = evaluate_stage(config, stage, str(shards), "val")
        details = {k: v for k, v in evaluation.details.items() if k != "shards"}
        found.append((dict(evaluation.scores), details, references(config, str(shards), "val")))
    assert found[0] == found[1]


def test_mined_neighbours_are_the_same(data_sets, alone):
    tables = []
    for shards in data_sets:
        torch.manual_seed(0)
        stage = RetrievalStage(retrieval_config(shards))
        context = StepContext(0, 0, 0, 1, 1, CPU)
        tables.append(stage.neighbours(context, Split.open(shards, "train"), 3))
    assert torch.equal(*tables)


def test_a_class_map_is_scored_where_its_panorama_shows_it(data_sets):
    """A segmenter that knows the truth is right, whatever the headings are."""
    config = segmentation_config(data_sets[1], evaluation={"batch": COUNT})
    stage = SegmentationStage(config)
    (known,) = whole_split(data_sets[0], "val")

    class Knows(torch.nn.Module):
        def forward(self, images):
            maps = [classes[..., 0].long().clamp(max=5) for classes in known.images["seg"]]
            return ([F.one_hot(each, 6).permute(2, 0, 1).float() for each in maps],)

    stage.segmenter = Knows()
    assert evaluate_stage(config, stage, str(data_sets[1]), "val").scores["mIoU"] == 1.0

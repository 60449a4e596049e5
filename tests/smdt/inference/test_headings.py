"""Panoramas that were rolled, with their heading said, are the same panoramas to every command."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.inference.align import open_alignment
from smdt.inference.annotate import Annotation, annotate, finish
from smdt.inference.embed import EmbedJob, embed
from smdt.inference.embed import finish as finish_gallery
from smdt.inference.locate import Locator, PhotoQuery, read_photo
from smdt.inference.segment import open_segmentation
from smdt.report.pictures import Pictures
from smdt.stages import config as configuration
from smdt.stages.retrieval.config import RetrievalConfig
from smdt.stages.segmentation.config import SegmentationConfig
from tests.checkpoints import UntrainedAlignment, save_untrained
from tests.rolled import PAIRS, WIDTH, build_pairs

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}


@pytest.fixture(scope="module", params=["one size", "many sizes"])
def data_sets(request, tmp_path_factory):
    """Shards with north in the middle, and of the same panoramas rolled."""
    root = tmp_path_factory.mktemp("rolled")
    widths = (WIDTH,) if request.param == "one size" else (WIDTH, 70, 84)
    return [build_pairs(root / f"{by}", by, widths) for by in (0, 29)]


def annotated(shards, annotator, out):
    job = Annotation(str(shards), str(out), batch=3, max_missing=0)
    annotate(job, annotator, CPU, 0, 1, lambda samples: None)
    finish(job)
    return out


def parts(shards, view, split="val"):
    """The bytes of each sample's part."""
    opened = Split.open(shards, split)
    for sample in range(len(opened)):
        offset, size = (int(opened.column(f"{view}_{what}")[sample]) for what in ("offset", "size"))
        with opened.tar(sample).open("rb") as tar:
            tar.seek(offset)
            yield tar.read(size)


def pixels(data):
    return np.array(Image.open(io.BytesIO(data)))


@pytest.fixture
def segmenter(data_sets, tmp_path):
    config = SegmentationConfig.model_validate(
        {
            "stage": "segmentation",
            "run": {"name": "test", "out": str(tmp_path / "run")},
            "data": {"shards": str(data_sets[0])},
            "model": {"image_size": (32, 64), "settings": TINY},
        }
    )
    save_untrained(tmp_path / "checkpoint", config)
    return tmp_path / "checkpoint"


def test_class_maps_are_made_alike_and_lie_on_their_panorama(data_sets, segmenter, tmp_path):
    annotator = open_segmentation(segmenter, CPU)
    north, turned = (
        annotated(shards, annotator, tmp_path / f"{at}") for at, shards in enumerate(data_sets)
    )
    headings = Split.open(turned, "val").column("heading")
    made = zip(parts(north, "seg"), parts(turned, "seg"), headings, strict=True)
    for plain, rolled, heading in made:
        classes = pixels(plain)
        columns = round(heading * classes.shape[1] / 360)
        assert columns != 0
        assert len(np.unique(classes)) > 1
        assert np.array_equal(np.roll(classes, -columns, axis=1), pixels(rolled))


def test_aligned_images_have_north_in_the_middle_whatever_the_heading(data_sets, tmp_path):
    annotator = open_alignment(UntrainedAlignment.save(data_sets[0], tmp_path).folder, CPU)
    north, turned = (
        annotated(shards, annotator, tmp_path / f"{at}") for at, shards in enumerate(data_sets)
    )
    assert [*parts(north, "aligned")] == [*parts(turned, "aligned")]


@pytest.fixture(params=[{"turn": True}, {"turn": True, "unknown_heading": True}], ids=str)
def trained(request, data_sets, tmp_path):
    config = RetrievalConfig.model_validate(
        {
            "stage": "retrieval",
            "run": {"name": "test", "out": str(tmp_path / "run")},
            "data": {"shards": str(data_sets[0])},
            "batch": {"global": 2},
            "augment": request.param,
            "geometry": {"panorama_size": (32, 64), "elevation_deg": (-30, 30)},
            "model": {"dropout": 0.0, "width": 32, "layers": 2},
        }
    )
    save_untrained(tmp_path / "checkpoint", config)
    return tmp_path / "checkpoint"


def test_a_panorama_is_located_as_its_rolled_copy(data_sets, trained, tmp_path):
    unknown = configuration.load(trained / "config.yaml").augment.unknown_heading
    turns = 1 if unknown else 3
    job = EmbedJob(trained, str(data_sets[0]), "val", tmp_path / "gallery", 8, 0, turns=turns)
    embed(job, CPU, 0, 1, lambda samples: None)
    locator = Locator(finish_gallery(job))
    count = PAIRS["val"]
    headings = Split.open(data_sets[1], "val").column("heading")
    photos = zip(
        parts(data_sets[0], "ground"), parts(data_sets[1], "ground"), headings, strict=True
    )
    for plain, rolled, heading in photos:
        found = []
        for name, data, said in (("a", plain, 0.0), ("b", rolled, float(heading))):
            (tmp_path / name).write_bytes(data)
            photo = read_photo(tmp_path / name)
            found.append(locator(photo, PhotoQuery.of(360, said, "panorama", 72), count))
        expected, got = ([(each.item, each.score) for each in places] for places in found)
        assert expected == got
        told = {each.heading_deg for each in found[1]}
        assert told == ({None} if unknown else {heading % 360})


def test_a_located_panorama_is_what_an_evaluation_sees(data_sets, trained, tmp_path):
    job = EmbedJob(trained, str(data_sets[0]), "val", tmp_path / "gallery", 8, 0)
    embed(job, CPU, 0, 1, lambda samples: None)
    gallery = finish_gallery(job)
    locator = Locator(gallery)
    split = Split.open(data_sets[1], "val")
    loader = EvaluationLoader(split, views=["ground"], batch=1, rank=0, world_size=1, device=CPU)
    for sample, (data, batch) in enumerate(zip(parts(data_sets[1], "ground"), loader, strict=True)):
        (tmp_path / "photo.png").write_bytes(data)
        look = PhotoQuery.of(360, float(split.column("heading")[sample]), "panorama", 72)
        (best,) = locator(read_photo(tmp_path / "photo.png"), look, 1)
        with torch.no_grad():
            (query,) = locator._stage.embed(batch, ["ground"])
        scores = (query @ gallery.descriptors.T)[0]
        assert best.item == int(scores.argmax())
        assert best.score == pytest.approx(float(scores.max()), abs=1e-6)


def test_a_report_shows_panorama_and_class_map_with_north_in_the_middle(data_sets):
    north, turned = (Pictures(Split.open(shards, "val")) for shards in data_sets)
    for sample in range(PAIRS["val"]):
        for view in ("ground", "aerial"):
            assert north.source(sample, view) == turned.source(sample, view)
        assert north.class_map(sample) == turned.class_map(sample)

import json
import shutil
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.base.errors import InputError, run
from smdt.cli.app import app
from smdt.data.evaluation_loader import EvaluationLoader
from smdt.data.split import Split
from smdt.evaluation.recall import EvaluationError, nearest
from smdt.inference.embed import EmbedJob, embed, finish
from smdt.inference.locate import Locator, PhotoQuery, best_places, embed_at, geojson, read_photo
from smdt.stages import config as configuration
from tests.checkpoints import save_untrained

CPU = torch.device("cpu")


def unit(count, width=32, seed=0):
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return made / made.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("k", [1, 7, 2000])
def test_the_search_finds_what_faiss_finds(k):
    items, queries = unit(2000), unit(300, seed=1)
    index = faiss.IndexFlatIP(32)
    index.add(items.numpy())
    expected_scores, expected = index.search(queries.numpy(), k)
    scores, found = nearest(queries, items, k, block=64)
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=0, atol=1e-5)
    differing = found.numpy() != expected
    # only what is equally near to rounding may stand in another order
    assert differing.mean() < 1e-3
    rows, columns = np.nonzero(differing)
    gaps = np.abs(scores.numpy()[rows, columns] - expected_scores[rows, columns])
    assert (gaps < 1e-5).all()


def test_the_best_places_over_all_headings_are_those_of_the_whole_matrix():
    queries, items = unit(36), unit(500, seed=1)
    scores = (queries @ items.T).double()
    best = scores.max(dim=0)
    order = best.values.argsort(descending=True)[:10]
    found = best_places(queries, items, 10)
    assert [item for item, _, _ in found] == order.tolist()
    assert [query for _, _, query in found] == best.indices[order].tolist()
    assert [score for _, score, _ in found] == pytest.approx(best.values[order].tolist(), abs=1e-6)
    assert len(best_places(queries, items[:3], 10)) == 3


def test_broken_descriptors_find_nothing():
    with pytest.raises(EvaluationError, match="zero or not finite"):
        best_places(torch.zeros(2, 32), unit(5), 1)
    with pytest.raises(EvaluationError, match="zero or not finite"):
        best_places(unit(2), torch.full((5, 32), torch.nan), 1)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ((0.0, None, "panorama", 8), "--fov: .* more than 0 and at most 360"),
        ((180.0, None, "rectilinear", 8), "at most 170 degrees, not 180"),
        ((90.0, None, "fisheye", 8), "--lens: 'fisheye' is not one of panorama, rectilinear"),
        ((90.0, float("nan"), "panorama", 8), "--heading: nan is not a direction"),
    ],
)
def test_what_no_photo_can_be_is_refused(said, sentence):
    with pytest.raises(InputError, match=sentence):
        PhotoQuery.of(*said)


def test_photos_are_read_upright_and_in_colour(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 20:, 0] = 255
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    read = read_photo(tmp_path / "a.png")
    assert read.shape == (30, 20, 3)
    assert torch.equal(read, torch.from_numpy(np.rot90(pixels, -1).copy()))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert read_photo(tmp_path / "grey.png").shape == (20, 30, 3)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg is not a JPEG or PNG file"):
        read_photo(tmp_path / "text.jpg")
    with pytest.raises(InputError, match="No such file"):
        read_photo(tmp_path / "missing.jpg")


def test_a_photo_is_refused_as_in_a_build_before_the_gallery_is_opened(tmp_path, capsys):
    sixteen = np.arange(200, dtype=np.uint16).reshape(10, 20) * 257
    Image.fromarray(sixteen).save(tmp_path / "deep.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "alpha.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name, said in (
        ("deep.png", "has 16 bits a channel; save it with 8 bits."),
        ("alpha.png", "has colour mode RGBA; save it as RGB or grey."),
        ("empty.jpg", "is empty."),
        ("folder.jpg", "can't be read (Is a directory)."),
    ):
        with pytest.raises(SystemExit) as ended:
            run(app, ["locate", str(tmp_path / name), "--gallery", str(tmp_path / "nowhere")])
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"{tmp_path / name} {said}\n"


@pytest.fixture
def make_gallery(world, write_config, tmp_path):
    def make(turns=1, **augment):
        config = configuration.load(write_config(tmp_path / "run", augment=augment))
        save_untrained(tmp_path / "checkpoint", config)
        out = tmp_path / f"out-{turns}"
        job = EmbedJob(tmp_path / "checkpoint", str(world), "val", out, 8, 0, turns=turns)
        embed(job, CPU, 0, 1, lambda samples: None)
        return finish(job)

    return make


def ground(world, sample=0):
    """The panorama of a validation sample, [32, 128, 3]."""
    split = Split.open(world, "val")
    offset, size = (int(split.column(f"ground_{what}")[sample]) for what in ("offset", "size"))
    with split.tar(sample).open("rb") as tar:
        tar.seek(offset)
        path = world.parent / f"photo-{sample}.jpg"
        path.write_bytes(tar.read(size))
    return read_photo(path)


def test_a_panorama_of_known_heading_is_one_query_as_in_an_evaluation(make_gallery, world):
    gallery = make_gallery()
    locator = Locator(gallery)
    panorama = ground(world)
    found = locator(panorama, PhotoQuery.of(360, 0, "panorama", 72), 24)
    query = locator._stage.towers.embed_ground(panorama.permute(2, 0, 1).unsqueeze(0))
    scores = (query.detach() @ gallery.descriptors.T)[0]
    assert sorted(each.item for each in found) == list(range(24))
    assert [each.score for each in found] == pytest.approx(
        [float(scores[each.item]) for each in found], abs=1e-5
    )
    assert {each.heading_deg for each in found} == {0.0}


def test_a_photo_is_tried_where_each_heading_would_put_it(make_gallery, world):
    gallery = make_gallery()
    locator = Locator(gallery)
    panorama = ground(world)
    # what looks east, a quarter of the panorama: columns 80 to 112 of 128
    piece = panorama[:, 80:112]
    placed = torch.zeros(1, 3, 32, 128)
    placed[0, :, :, 80:112] = piece.permute(2, 0, 1)
    expected = locator._stage.towers.embed_ground(placed).detach() @ gallery.descriptors.T
    (best,) = locator(piece, PhotoQuery.of(90, 90, "panorama", 72), 1)
    assert best.score == pytest.approx(float(expected.max()), abs=1e-5)
    assert (best.item, best.heading_deg) == (int(expected.argmax()), 90.0)
    scanned = locator(piece, PhotoQuery.of(90, None, "panorama", 4), 24)
    at_east = {
        each.item: each.score for each in locator(piece, PhotoQuery.of(90, 90, "panorama", 4), 24)
    }
    assert all(each.score >= at_east[each.item] - 1e-6 for each in scanned)
    assert {each.heading_deg for each in scanned} <= {0.0, 90.0, 180.0, 270.0}


def test_headings_are_embedded_alike_in_every_batch(make_gallery, world):
    locator = Locator(make_gallery())
    photo = ground(world).permute(2, 0, 1).unsqueeze(0).float()
    headings = np.arange(40) * 9.0
    whole = embed_at(locator._stage, photo, headings)
    alone = torch.cat([embed_at(locator._stage, photo, headings[i : i + 1]) for i in (0, 17, 39)])
    torch.testing.assert_close(whole[[0, 17, 39]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("said", "turns"), [(90.0, 3), (None, 4), (None, 5)])
def test_a_score_is_the_mean_over_turns_of_photo_and_place(make_gallery, world, said, turns):
    gallery = make_gallery(turns)
    locator = Locator(gallery)
    towers = locator._stage.towers
    piece = ground(world)[:, 80:112]
    centred = torch.zeros(1, 3, 32, 128)
    centred[0, :, :, 48:80] = piece.permute(2, 0, 1)
    # Places as the towers see them, one at a time; columns to the left are turns clockwise.
    loader = EvaluationLoader(
        Split.open(world, "val"), views=["aerial"], batch=1, rank=0, world_size=1, device=CPU
    )
    places = [locator._stage.seen(batch, "aerial") for batch in loader]
    columns = [round(128 * turn / turns) for turn in range(turns)]
    headings = [said] if said is not None else [0.0, 90.0, 180.0, 270.0]
    means = np.empty((len(headings), 24))
    with torch.no_grad():
        for row, heading in enumerate(headings):
            shift = [round(128 * ((heading / 360 - turn / turns) % 1)) for turn in range(turns)]
            photos = [towers.embed_ground(centred.roll(by, 3)).double() for by in shift]
            for item, place in enumerate(places):
                turned = [towers.embed_aerial(place.roll(-by, 3)).double() for by in columns]
                means[row, item] = np.mean(
                    [float((a * b).sum()) for a, b in zip(photos, turned, strict=True)]
                )
    found = locator(piece, PhotoQuery.of(90, said, "panorama", 4), 24)
    assert [each.score for each in found] == pytest.approx(
        np.sort(means.max(axis=0))[::-1].tolist(), abs=1e-5
    )
    for each in found:
        assert each.score == pytest.approx(means[:, each.item].max(), abs=1e-5)
        at = headings.index(each.heading_deg)
        assert means[at, each.item] == pytest.approx(each.score, abs=1e-5)


def test_towers_that_never_know_a_heading_get_the_photo_in_the_middle(make_gallery, world):
    gallery = make_gallery(unknown_heading=True, fov_deg=[70, 360])
    locator = Locator(gallery)
    assert locator.narrowest_deg == 70
    found = locator(ground(world), PhotoQuery.of(360, 120, "panorama", 72), 3)
    assert [each.heading_deg for each in found] == [None] * 3


def test_a_gallery_of_other_weights_is_refused(make_gallery, write_config, tmp_path):
    gallery = make_gallery()
    save_untrained(
        tmp_path / "later", configuration.load(write_config(tmp_path / "later-run")), seed=5
    )
    with pytest.raises(InputError, match="made by other weights"):
        Locator(gallery, tmp_path / "later")
    moved = replace(gallery.described, checkpoint="gone")
    with pytest.raises(InputError, match="gone"):
        Locator(replace(gallery, described=moved))
    assert Locator(replace(gallery, described=moved), tmp_path / "checkpoint")


def test_places_without_coordinates_are_no_points(make_gallery, world):
    gallery = make_gallery()
    found = Locator(gallery)(ground(world), PhotoQuery.of(360, 0, "panorama", 1), 2)
    collection = geojson(found, gallery)
    assert collection["type"] == "FeatureCollection"
    split = Split.open(world, "val")
    for feature, each in zip(collection["features"], found, strict=True):
        assert feature["properties"]["source_id"] == split.source_id(each.item)
        lon, lat = feature["geometry"]["coordinates"]
        assert (lat, lon) == (split.column("lat")[each.item], split.column("lon")[each.item])
    lost = gallery.places.set_column(2, "lat", [[float("nan")] * 24])
    assert geojson(found, replace(gallery, places=lost))["features"][0]["geometry"] is None


def smdt(*arguments):
    with pytest.raises(SystemExit) as ended:
        run(app, [str(word) for word in arguments])
    assert not ended.value.code, arguments


def test_photos_and_places_with_odd_names_are_shown_and_written(
    make_gallery, world, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    make_gallery()
    ground(world)
    for name in ("photo[north].png", "x[b].png", "[/b].png", ":smile:.png", "a\x1b[31m.png"):
        photo, answer = tmp_path / name, tmp_path / "answer.json"
        photo.parent.mkdir(exist_ok=True)
        shutil.copy(world.parent / "photo-0.jpg", photo)
        smdt("locate", photo, "--gallery", tmp_path / "out-1", "--json", answer)
        assert name.replace("\x1b", "\\x1b") in capsys.readouterr().out
        assert json.loads(answer.read_text())["photo"] == str(photo)
        answer.unlink()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_photos_cut_to_90_degrees_of_unknown_heading_are_located(world, write_config, tmp_path):
    """The README's commands, on a small model of the small world that was trained for it."""
    config = write_config(
        tmp_path / "run",
        augment={"mirror": True, "fov_deg": [90, 360]},
        model={"dropout": 0.0, "width": 64, "layers": 2},
        batch={"global": 32},
        optimizer={"learning_rate": 0.001},
        schedule={"length": "600 epochs", "warmup_steps": 20},
        checkpoint={"every": "600 epochs"},
        evaluation={"every": "600 epochs", "batch": 8},
    )
    smdt("train", "--config", config)
    gallery, answer = tmp_path / "gallery", tmp_path / "answer.json"
    smdt("embed", tmp_path / "run", "--shards", world, "--split", "train", "--out", gallery)
    split = Split.open(world, "train")
    ranks = []
    for sample in range(0, 64, 4):
        offset, size = (int(split.column(f"ground_{w}")[sample]) for w in ("offset", "size"))
        with split.tar(sample).open("rb") as tar:
            tar.seek(offset)
            (tmp_path / "whole.jpg").write_bytes(tar.read(size))
        whole = Image.open(tmp_path / "whole.jpg")
        heading = (sample * 50) % 360
        column = round((heading - 180) / 360 * 128)  # that looks there
        middle = np.roll(np.array(whole), 64 - column, axis=1)
        Image.fromarray(middle[:, 48:80]).save(tmp_path / "photo.png")
        smdt("locate", tmp_path / "photo.png", "--gallery", gallery, "--fov", 90, "--json", answer)
        places = [each["source_id"] for each in json.loads(answer.read_text())["places"]]
        ranks.append(
            places.index(split.source_id(sample)) if split.source_id(sample) in places else 5
        )
    # of 64 places; by chance one of 16 photos would be in its first five
    assert sum(rank < 5 for rank in ranks) >= 11
    assert sum(rank == 0 for rank in ranks) >= 4

from data_shards.build.dataset import build
from data_shards.format.sample import Meta, Sample
from data_shards.inspect.stats import stats


def test_numbers_of_a_set(small_set):
    train = stats(small_set)["train"]
    assert (train.shards, train.samples, train.rejected, train.places) == (3, 9, 1, 9)
    assert (train.with_position, train.with_heading) == (1, 1)
    assert train.with_labels == 4 / 9
    assert train.bytes == sum(p.stat().st_size for p in (small_set / "train").glob("*.tar"))
    assert {image: str(size) for image, size in train.sizes.items()} == {
        "ground": "32 x 96",
        "aerial": "48 x 48",
        "seg": "32 x 96",
    }


def test_places_sizes_and_shares_of_a_mixed_set(memory_source, tmp_path, make_jpeg):
    source = memory_source(rows={"tiles": 5})

    def sample(_split, row):
        here = {"lat": 1.0, "lon": 2.0} if row < 2 else {}
        here |= {"utm": (5e5, 1e6)} if row == 2 else {}
        return Sample(Meta(f"{row}", **here), {"aerial.jpg": make_jpeg(20 + row, 20 + row)})

    source.sample = sample
    build(source, tmp_path / "out", workers=1)
    tiles = stats(tmp_path / "out")["tiles"]
    assert (tiles.places, tiles.with_position, tiles.with_heading) == (4, 3 / 5, 0)
    assert str(tiles.sizes["aerial"]) == "20-24 x 20-24"
    assert set(tiles.sizes) == {"aerial"}

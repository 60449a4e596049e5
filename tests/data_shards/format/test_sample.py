import json

from data_shards.format.sample import Meta


def test_meta_json_says_what_is_known_and_null_for_the_rest():
    meta = Meta("city/é.7", lat=1.5, utm=(500000.0, 1.25), elevation=(-32.75, 32.75))
    assert json.loads(meta.to_json()) == {
        "source_id": "city/é.7",
        "lat": 1.5,
        "lon": None,
        "utm": [500000.0, 1.25],
        "heading": None,
        "extent_m": None,
        "elevation": [-32.75, 32.75],
        "positive": None,
        "semi_positives": [],
    }
    tiles = json.loads(Meta("a", positive=0, semi_positives=(7, 1)).to_json())
    assert (tiles["positive"], tiles["semi_positives"]) == (0, [7, 1])

from data_shards.build.progress import RunTotals
from data_shards.format.index import Rejection, ShardSummary


def test_a_tally_adds_up():
    rejections = [Rejection(split="t", row=r, reason="x", detail="") for r in range(2)]
    shard = ShardSummary(samples=3, tar_bytes=10, tar_sha256="", pixels={}, rejected=rejections)
    tally = RunTotals()
    tally.finish(shard)
    tally.finish(shard)
    figures = tally.figures()
    seconds = figures.pop("seconds")
    assert figures.pop("samples_per_second") > 0
    assert seconds >= 0
    assert figures == {"shards": 2, "samples": 6, "bytes": 20, "rejected": {"x": 4}}

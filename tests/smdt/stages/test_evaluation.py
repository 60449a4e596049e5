import pytest

from data_shards.base.errors import DataError
from smdt.stages.evaluation import missing_samples


class TenSamples:
    name, root = "val", "data/world"

    def __len__(self) -> int:
        return 10


def test_the_limit_is_of_all_ranks_together():
    assert missing_samples(TenSamples(), 10, 0) == 0
    assert missing_samples(TenSamples(), 7, 3) == 3
    with pytest.raises(DataError, match=r"4 samples of split 'val' .* more than max_missing=3"):
        missing_samples(TenSamples(), 6, 3)

"""Which table an epoch gets: made when it begins, found again in its middle."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_shards.base.errors import DataError
from smdt.data.order import DataState, OrderConfig
from smdt.training.loop.mining import HardNegativeMiner
from smdt.training.loop.stage import StepContext

SAMPLES, PER_EPOCH = 12, 10


class FakeSplit:
    name, root = "train", "nowhere"

    def __init__(self, positions: bool):
        self.places = np.arange(SAMPLES)
        known = np.arange(SAMPLES) / 100 if positions else np.full(SAMPLES, np.nan)
        self._columns = {"lat": known, "lon": known}
        self.utm = np.full((SAMPLES, 2), np.nan)

    def __len__(self) -> int:
        return SAMPLES

    def column(self, name):
        return self._columns[name]

    def shown(self, sample_ids):
        return self.places[sample_ids][:, None]


class FakeLoader:
    def __init__(self, positions: bool):
        self.split = FakeSplit(positions)

    def next_epoch(self, state):
        full = state.consumed >= PER_EPOCH
        return (state.epoch + 1, True) if full else (state.epoch, state.consumed == 0)


class FakeStage:
    """Finds other neighbours each time it is asked."""

    asked = 0

    def neighbours(self, context, split, count):
        self.asked += 1
        return torch.full((SAMPLES, count), self.asked, dtype=torch.int32)


@pytest.fixture(autouse=True)
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def mining(tmp_path):
    def make(positions: bool = True, **order: object) -> HardNegativeMiner:
        config = OrderConfig.model_validate({"policy": "hard"} | order)
        context = StepContext(0, 0, 0, 1, 1, torch.device("cpu"))
        folder = tmp_path / "tables"
        folder.mkdir(exist_ok=True)
        return HardNegativeMiner(config, FakeLoader(positions), FakeStage(), context, folder)

    return make


def state(epoch: int, consumed: int, table_hash: str = "") -> DataState:
    return DataState("manifest", 0, epoch, consumed, table_hash)


def test_other_policies_have_no_table(mining):
    period = mining(policy="shuffle").period(state(0, 0), 7)
    assert (period.table, period.end_epoch) == (None, 7)


def test_without_refresh_the_map_serves_to_the_end(mining):
    mine = mining()
    period = mine.period(state(0, 0), 7)
    assert period.end_epoch == 7
    assert period.table.samples[0, 0] == 1
    again = mine.period(state(3, 5, period.table.sha256), 7)
    assert again.table.sha256 == period.table.sha256
    assert again.end_epoch == 7


def test_embeddings_follow_the_map_every_k_epochs(mining):
    mine = mining(hard={"refresh": 2, "neighbours": 3})
    first = mine.period(state(0, 0), 5)
    assert (first.end_epoch, first.table.samples[0, 0]) == (2, 1)
    second = mine.period(state(1, PER_EPOCH, first.table.sha256), 5)
    assert (second.end_epoch, second.table.samples.tolist()) == (4, [[1, 1, 1]] * SAMPLES)
    third = mine.period(state(3, PER_EPOCH, second.table.sha256), 5)
    assert (third.end_epoch, third.table.samples.tolist()) == (5, [[2, 2, 2]] * SAMPLES)


@pytest.mark.parametrize(
    ("curriculum", "kinds"),
    [
        ({}, "mmmmmmmm"),
        ({"random_epochs": 3}, "rrrmmmmm"),
        ({"refresh": 3}, "mmmEeeEe"),
        ({"random_epochs": 2, "map_epochs": 1, "refresh": 2}, "rrmEeEeE"),
        ({"map_epochs": 0, "refresh": 3}, "EeeEeeEe"),
        ({"random_epochs": 1, "refresh": 2}, "rmmEeEeE"),
    ],
)
def test_a_curriculum_is_random_then_on_the_map_then_by_embedding(mining, curriculum, kinds):
    """E is an epoch for which embeddings are made, e one that keeps them."""
    mine = mining(hard={"neighbours": 3, **curriculum})
    now, seen, ends = state(0, 0), "", []
    for epoch in range(8):
        period = mine.period(now, 8)
        asked = mine._stage.asked
        if period.table is None:
            seen += "r"
        elif (period.table.samples == asked).all():
            seen += "e" if seen[-1:] in "Ee" and now.table_hash == period.table.sha256 else "E"
        else:
            seen += "m"
        ends.append(period.end_epoch)
        now = state(epoch, PER_EPOCH, period.table.sha256 if period.table else "")
    assert seen == kinds
    changes = [
        i for i in range(1, 8) if kinds[i] == "E" or kinds[i].lower() != kinds[i - 1].lower()
    ]
    assert ends == [next((c for c in changes if c > epoch), 8) for epoch in range(8)]


def test_a_curriculum_that_leads_nowhere_is_a_sentence():
    with pytest.raises(ValueError, match="set refresh"):
        OrderConfig.model_validate({"policy": "hard", "hard": {"map_epochs": 2}})


def test_in_the_middle_of_an_epoch_the_table_is_never_made_again(mining):
    hard = {"refresh": 2, "neighbours": 3}
    made = mining(hard=hard).period(state(1, PER_EPOCH), 9)
    resumed = mining(hard=hard)
    for epoch, consumed in ((2, 5), (2, PER_EPOCH), (3, 5)):
        found = resumed.period(state(epoch, consumed, made.table.sha256), 9)
        assert (found.table.sha256, found.end_epoch) == (made.table.sha256, 4)
    assert resumed._stage.asked == 0


def test_without_positions_batches_are_random_until_embeddings_come(mining):
    mine = mining(positions=False, hard={"refresh": 2})
    assert mine.period(state(0, 0), 9).table is None
    assert mine.period(state(1, 5), 9).table is None
    assert mine.period(state(1, PER_EPOCH), 9).table is not None


def test_without_positions_and_embeddings_it_is_a_sentence(mining):
    with pytest.raises(DataError, match="which neighbours on the map need"):
        mining(positions=False).period(state(0, 0), 9)


def test_only_tables_that_a_state_names_are_kept(mining, tmp_path):
    mine = mining(hard={"refresh": 1, "neighbours": 3})
    made = [mine.period(state(epoch, PER_EPOCH), 9).table.sha256 for epoch in range(3)]
    mine.prune([state(2, 5, made[1]), state(0, 0)])
    assert [path.stem for path in (tmp_path / "tables").iterdir()] == [made[1]]


def test_another_order_has_its_table_from_the_next_epoch_on(mining):
    before = OrderConfig(policy="hard", hard={"neighbours": 3})
    made = mining(hard={"neighbours": 3}).period(state(0, 0), 9)
    mine = mining(hard={"neighbours": 2})
    begun = replace(state(3, 5, made.table.sha256), order=before)
    period = mine.period(begun, 9)
    assert (period.table.sha256, period.end_epoch) == (made.table.sha256, 4)
    ended = replace(state(3, PER_EPOCH, made.table.sha256), order=before)
    new = mine.period(ended, 9)
    assert (new.table.samples.shape, new.end_epoch) == ((SAMPLES, 2), 9)
    shuffled = mining(policy="shuffle").period(begun, 9)
    assert (shuffled.table.sha256, shuffled.end_epoch) == (made.table.sha256, 4)
    assert mining(policy="shuffle").period(ended, 9).table is None

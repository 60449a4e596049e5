"""A small world that every test of the whole system shares."""

from pathlib import Path

import pytest
from hypothesis import settings

from data_shards.build import BuildOptions, build
from data_shards.world.source import WorldSource

# The machine is shared: a slow moment is no failure.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Shards of a small world: 64 training pairs in 4 shards, 24 of an unseen city."""
    root = tmp_path_factory.mktemp("world") / "shards"
    source = WorldSource(0, 64, 24, "easy", (32, 128), 96)
    build(source, root, BuildOptions(samples_per_shard=16), workers=1)
    return root

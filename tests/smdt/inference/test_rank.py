from pathlib import Path

import pytest

from data_shards.errors import InputError
from smdt.inference import rank
from smdt.inference.annotate import Annotation

JOB = Annotation("s3://bucket/set", "out folder", batch=3, max_missing=2)


@pytest.fixture
def as_rank(monkeypatch):
    """Run the entry point as a launcher does; return what the rank was asked to do."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    asked = []
    monkeypatch.setattr(rank, "annotate_rank", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(rank, "die_with_parent", lambda: None)

    def start(*arguments):
        rank.app(["--local_rank=1", *arguments], standalone_mode=False)
        return asked

    return start


def test_a_rank_gets_the_job_through_its_command_line(as_rank):
    asked = as_rank(*rank.rank_arguments("segment", JOB, Path("runs/a")))
    assert asked == [("segment", JOB, Path("runs/a"), 1, 4)]


def test_another_command_is_refused(as_rank):
    with pytest.raises(InputError, match="'sharpen' is none of segment, align"):
        as_rank(*rank.rank_arguments("sharpen", JOB, Path("runs/a")))

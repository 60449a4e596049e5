"""Ranks get their job through a command line, whatever its values look like."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from smdt.inference import rank
from smdt.inference.embed import EmbedJob
from smdt.inference.rank import AnnotateJob, EvaluateJob

TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)
PATHS = TEXTS.map(Path)
COUNTS = st.integers(0, 10**9)
JOBS = {
    "segment": st.builds(AnnotateJob, TEXTS, TEXTS, COUNTS, COUNTS, checkpoint=PATHS),
    "align": st.builds(AnnotateJob, TEXTS, TEXTS, COUNTS, COUNTS, checkpoint=PATHS),
    "embed": st.builds(
        EmbedJob, PATHS, TEXTS, TEXTS, PATHS, COUNTS, COUNTS, st.none() | PATHS, COUNTS
    ),
    "evaluate": st.builds(
        EvaluateJob,
        *(PATHS, TEXTS, TEXTS, COUNTS, st.booleans(), st.none() | PATHS, st.none() | TEXTS),
        *(st.none() | st.floats(allow_nan=False), st.none() | st.booleans(), st.none() | PATHS),
    ),
}
ANNOTATE = AnnotateJob(
    "s3://bucket/set", "out folder", batch=3, max_missing=2, checkpoint=Path("a")
)


@given(st.data(), st.sampled_from(sorted(JOBS)))
def test_a_command_line_says_all_of_a_job(data, name):
    assert set(JOBS) == set(rank.JOBS)
    job = data.draw(JOBS[name])
    assert rank.parse(rank.arguments(name, job)) == (name, job)


def test_options_are_those_of_the_command_and_need_no_defaults():
    words = ["align", "--shards", "a", "--out", "b", "--checkpoint", "c", "--max-missing", "5"]
    assert rank.parse(words) == ("align", AnnotateJob("a", "b", 16, 5, checkpoint=Path("c")))
    assert rank.parse([*words, "--batch=7"])[1].batch == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "'' is not one of segment, align, embed, evaluate"),
        ("sharpen --shards a", "'sharpen' is not one of"),
        ("align --shards a --out b", "--checkpoint"),
        ("align --shards a --out b --checkpoint c --batch many", "--batch"),
        ("align --shards a --out b --checkpoint c --bat 3", "--bat"),
        ("align --shards a --out b --checkpoint", "--checkpoint"),
    ],
)
def test_what_no_job_has_is_refused(words, said):
    with pytest.raises(InputError, match=said):
        rank.parse(words.split())


def test_a_rank_does_its_part(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(rank, "exit_with_parent", lambda: None)
    done = []
    jobs = {"segment": (AnnotateJob, lambda *arguments: done.append(arguments))}
    monkeypatch.setattr(rank, "JOBS", jobs)
    rank.app(["--local_rank=1", *rank.arguments("segment", ANNOTATE)], standalone_mode=False)
    assert done == [(ANNOTATE, 1, 4)]

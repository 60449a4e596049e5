import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_shards.base.errors import InputError
from launcher.hosts.hostfile import apply_filter, count, fitting, include_filter, parse, read_hosts

TEXT = """# the cluster
node-0 slots=4

node-1   slots=2
node-2.rack slots=8
"""
HOSTS = parse(TEXT)


@pytest.mark.slow
def test_what_deepspeed_reads_is_what_we_read():
    from deepspeed.launcher.runner import _parse_hostfile

    theirs = _parse_hostfile(TEXT.splitlines())
    assert {name: len(slots) for name, slots in HOSTS.items()} == theirs
    assert list(HOSTS) == list(theirs)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no host"),
        ("node-0", "line 1 is 'node-0'"),
        ("\nnode-0 slots=0", "line 2 is"),
        ("node-0 slots=2 slots=3", "line 1 is"),
        ("node-0 slots=1\nnode-0 slots=1", "line 2: node-0 is listed twice"),
        ("node-0 slots=1\nNode-0 slots=1", "line 2: Node-0 is listed twice"),
        ("fd00::1 slots=1", "line 1: 'fd00::1' is not a host name"),
        ("node-%h slots=1", "not a host name"),
        ("me@node-0 slots=1", "~/.ssh/config"),
        ("node-[0-3] slots=1", "not a host name"),
        ("-oProxyCommand=x slots=1", "not a host name"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{re.escape(sentence)}"):
        read_hosts(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_hosts(tmp_path / "hosts")


@st.composite
def filters(draw):
    """A filter that names hosts and slots that are there."""
    names = draw(st.lists(st.sampled_from(list(HOSTS)), min_size=1, unique=True))
    parts = []
    for name in names:
        slots = draw(st.lists(st.sampled_from(HOSTS[name]), unique=True))
        parts.append(name + (":" + ",".join(map(str, slots)) if slots else ""))
    return "@".join(parts)


@pytest.mark.slow
@given(filters(), st.booleans())
def test_filters_are_deepspeeds(text, is_include):
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    include, exclude = (text, "") if is_include else ("", text)
    sizes = {name: len(slots) for name, slots in HOSTS.items()}
    theirs = parse_inclusion_exclusion(sizes, include, exclude)
    assume(theirs)
    ours = apply_filter(HOSTS, include, exclude)
    assert [(n, list(s)) for n, s in ours.items()] == [(n, list(s)) for n, s in theirs.items()]


@pytest.mark.parametrize(
    ("include", "exclude", "sentence"),
    [
        ("node-0", "node-1", "exclude each other"),
        ("node-9", "", "'node-9', which is not in the file"),
        ("node-1:2", "", "slot 2 of node-1, which has 2"),
        ("node-1:", "", "has slots ''"),
        ("", "node-0@node-1@node-2.rack", "leaves no slot"),
    ],
)
def test_a_filter_of_what_is_not_there_is_refused(include, exclude, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        apply_filter(HOSTS, include, exclude)


def test_the_filter_of_a_choice_makes_that_choice():
    choice = {"node-0": (1, 3), "node-2.rack": (0,)}
    assert apply_filter(HOSTS, include=include_filter(choice)) == choice


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 60), st.integers(1, 3))
def test_the_largest_number_of_ranks_that_divides_the_batch(slots, global_batch, chunks):
    hosts = {f"h{i}": tuple(range(n)) for i, n in enumerate(slots)}
    chosen = fitting(hosts, global_batch, chunks)
    fit = [n for n in range(1, count(hosts) + 1) if global_batch % (n * chunks) == 0]
    assert count(chosen) == max(fit, default=0)
    assert all(set(chosen[name]) <= set(hosts[name]) for name in chosen)
    full = list(chosen)[:-1]
    assert all(chosen[name] == hosts[name] for name in full)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
def test_lines_may_end_as_on_any_system_and_deepspeed_reads_the_same(tmp_path, end):
    path = tmp_path / "hosts"
    path.write_bytes(end.join(TEXT.encode().splitlines()))
    assert read_hosts(path) == HOSTS
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe"):
        path.write_bytes(mark + TEXT.encode())
        with pytest.raises(InputError, match="begins with a byte order mark"):
            read_hosts(path)

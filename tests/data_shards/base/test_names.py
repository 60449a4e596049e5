import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from data_shards.base.names import (
    file_name,
    is_address,
    is_host,
    is_variable,
    kubernetes_name,
    label_value,
    slurm_name,
    unprintable,
)

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
NAMES = st.text(st.characters(codec=None), max_size=300) | st.text("aA1.-_ /é\n", max_size=70)
MAKERS = [kubernetes_name, slurm_name, file_name]


@given(NAMES, st.integers(20, 63))
@example("7scenes", 63)
@example("2026-11-30.cvusa", 63)
@example("x" * 64, 63)
@example("", 20)
@example("-", 20)
@example("a-" * 40, 20)
def test_a_kubernetes_name_is_a_dns_label_of_the_length_asked(name, longest):
    made = kubernetes_name(name, longest)
    assert DNS_1035.fullmatch(made)
    assert len(made) <= longest


@given(st.from_regex(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", fullmatch=True))
def test_a_name_that_kubernetes_accepts_stays(name):
    assume(not re.search("-[0-9a-f]{8}$", name))
    assert kubernetes_name(name) == name


@given(NAMES)
def test_a_slurm_name_is_one_word_for_every_parser(name):
    made = slurm_name(name)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", made)
    assert not made.startswith("-")


@given(name=NAMES)
@example(name="../../etc/passwd")
@example(name="é" * 200)
@example(name="..")
def test_a_file_of_that_name_can_be_made_and_is_seen(name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    file = folder / f"{file_name(name)}-launcher.json"
    file.write_text("")
    assert file in folder.glob("*.json")
    file.unlink()


@pytest.mark.parametrize("name", ["cvusa", "cvusa retrieval", "run.1", "Zürich_2"])
def test_a_name_that_files_can_have_stays(name):
    assert file_name(name) == name


@pytest.mark.parametrize("make", MAKERS)
@given(one=NAMES, other=NAMES)
@example(one="My.Run", other="my-run")
@example(one="my_run", other="my.run")
@example(one="x" * 300, other="x" * 301)
@example(one="a/b", other="a-b")
@example(one="a--b", other="a-b")
@example(one="日本", other="本日")
def test_different_names_stay_different(make, one, other):
    assume(one != other)
    assert make(one) != make(other)


@pytest.mark.parametrize("make", MAKERS)
def test_a_name_that_looks_like_a_changed_one_stays_different(make):
    changed = make("a/b ü")
    assert make(changed) != changed


@given(NAMES)
def test_a_label_value_is_text_in_utf8(text):
    made = label_value(text)
    assert len(made) == len(text)
    assert made == text or "\ufffd" in made.encode().decode()


@pytest.mark.parametrize("name", ["node-0", "node-2.rack", "10.0.0.1", "_x", "localhost"])
def test_names_of_hosts(name):
    assert is_host(name)
    assert is_address(name)


@pytest.mark.parametrize(
    "name",
    ["", "-oProxyCommand=x", "me@node-0", "node-[0-3]", "a,b", "a b", "%h", "node\n", "^file",
     "nöde", "a;b", "/x/", "a:22", "x" * 254],
)  # fmt: skip
def test_what_means_more_than_a_host_to_ssh_or_pdsh_is_none(name):
    assert not is_host(name)
    assert not is_address(name)


def test_an_ipv6_address_is_an_address_but_no_word_of_a_hostfile():
    assert is_address("fd00::1")
    assert not is_host("fd00::1")
    assert not is_address("fe80::1%eth0")


def test_names_of_variables():
    assert is_variable("A_1")
    assert not any(map(is_variable, ["1A", "É", "A\n", "A=1", "A-B", ""]))


@pytest.mark.parametrize("char", ["\n", "\r", "\x00", "\x1b", "\x85", "\u2028", "\udcff", "\t"])
def test_what_no_line_can_hold_is_found(char):
    assert unprintable(f"a {char}b") == char
    assert unprintable("a b é 👨‍👩‍👧") == ""

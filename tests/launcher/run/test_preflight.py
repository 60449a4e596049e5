from dataclasses import replace

import pytest

from launcher.hosts.probe import Facts
from launcher.hosts.ssh import HostResponse
from launcher.run.preflight import PreflightReport, compare_hosts, rendezvous_address, wanted_device

GOOD = Facts(
    versions={"python": "3.11.7", "torch": "2.14.1"},
    code="c0de",
    files="f11e",
    files_error="",
    manifest="da7a",
    manifest_error="",
    folder_error="",
    device="cuda",
    devices=8,
    addresses=["10.0.0.2", "172.17.0.1"],
    own_address="10.0.0.2",
    port=4711,
    taken_ports=[],
)
HOSTS = {"a": tuple(range(8)), "b": tuple(range(8))}


def look(theirs=GOOD, skew_seconds=0.0, error=""):
    """Judge two hosts, of which b answers `theirs`."""
    answers = {
        "a": HostResponse({"x": 1}, "", 0.0),
        "b": HostResponse({"x": 1}, error, skew_seconds),
    }
    facts = {"a": GOOD} if error else {"a": GOOD, "b": theirs}
    return PreflightReport(facts, compare_hosts(GOOD, HOSTS, answers, facts))


def test_hosts_that_are_alike_are_ready():
    assert look().findings == []
    assert look().passed(HOSTS) == HOSTS


@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        ({"versions": {"python": "3.11.7", "torch": "2.13.0"}}, "versions", "torch 2.13.0"),
        ({"versions": {"python": "3.11.7"}}, "versions", "torch missing"),
        ({"code": "01d"}, "code", "another SMDT"),
        ({"files": "other"}, "configuration", "other contents"),
        ({"files": "", "files_error": "x.yaml: No such file"}, "configuration", "No such file"),
        ({"manifest": "other"}, "shards", "another data set"),
        ({"manifest": "", "manifest_error": "no folder"}, "shards", "no folder"),
        ({"folder_error": "cannot be written: full"}, "run folder", "cannot be written: full"),
        ({"device": "cpu", "devices": 16}, "accelerators", "cpu, where the run needs cuda"),
        ({"devices": 7}, "accelerators", "7 cuda, slots up to 7"),
    ],
)
def test_what_blocks_a_host_is_named_with_a_fix(change, check, found):
    seen = look(replace(GOOD, **change))
    (finding,) = seen.findings
    assert (finding.host, finding.check, finding.blocking) == ("b", check, True)
    assert found in finding.found
    assert finding.fix
    assert list(seen.passed(HOSTS)) == ["a"]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"taken_ports": [9400]}, "metrics ports"),
        ({"own_address": "127.0.1.1"}, "name"),
        ({"own_address": ""}, "name"),
    ],
)
def test_a_warning_blocks_nobody(change, check):
    seen = look(replace(GOOD, **change))
    assert [(f.check, f.blocking) for f in seen.findings] == [(check, False)]
    assert seen.passed(HOSTS) == HOSTS


@pytest.mark.parametrize(("skew_seconds", "said"), [(1.5, "1.5 s ahead"), (-7.25, "7.2 s behind")])
def test_a_clock_that_is_off(skew_seconds, said):
    (finding,) = look(skew_seconds=skew_seconds).findings
    assert (finding.check, finding.found) == ("clock", said)
    assert look(skew_seconds=0.9).findings == []


@pytest.mark.parametrize(
    ("error", "check"),
    [
        ("ssh: connect to host b port 22: Connection refused", "ssh"),
        ("no answer within 120 s", "ssh"),
        ("bash: line 1: cd: /work: No such file or directory", "environment"),
        ("/opt/python: No module named launcher", "environment"),
    ],
)
def test_a_host_that_does_not_answer(error, check):
    seen = look(error=error)
    (finding,) = seen.findings
    assert (finding.check, finding.found) == (check, error)
    assert list(seen.passed(HOSTS)) == ["a"]


def test_cores_are_no_accelerators():
    cpu = replace(GOOD, device="cpu", devices=2)
    answers = dict.fromkeys(HOSTS, HostResponse({"x": 1}, "", 0.0))
    findings = compare_hosts(cpu, HOSTS, answers, dict.fromkeys(HOSTS, cpu))
    assert [(f.check, f.blocking) for f in findings] == [("accelerators", False)] * 2


def test_ranks_meet_where_deepspeed_would_let_them():
    assert rendezvous_address(GOOD, None) == "10.0.0.2"
    assert rendezvous_address(GOOD, "ib0.a") == "ib0.a"
    assert rendezvous_address(replace(GOOD, addresses=[]), None) == GOOD.own_address


def without(device, *hosts):
    """Facts of two hosts, of which these have another device."""
    lost = replace(GOOD, device=device)
    return {name: lost if name in hosts else GOOD for name in HOSTS}


def refused(facts, began_with="cpu"):
    answers = dict.fromkeys(HOSTS, HostResponse({"x": 1}, "", 0.0))
    return [f.host for f in compare_hosts(GOOD, HOSTS, answers, facts, began_with)]


@pytest.mark.parametrize("host", list(HOSTS))
@pytest.mark.parametrize("began_with", ["cpu", "cuda"])
def test_the_host_that_has_lost_its_accelerators_is_refused_whichever_it_is(host, began_with):
    assert refused(without("cpu", host), began_with) == [host]


def test_a_run_that_began_on_accelerators_does_not_go_on_without():
    facts = without("cpu", *HOSTS)
    assert refused(facts, "cuda") == list(HOSTS)
    assert wanted_device("cpu", HOSTS, facts) == "cpu"
    assert refused(without("xpu", "a"), "xpu") == ["b"]


def test_the_accelerator_of_most_slots_is_the_measure():
    slots = {"a": (0,), "b": (0, 1)}
    assert wanted_device("cpu", slots, without("xpu", "a")) == "cuda"
    assert wanted_device("cpu", slots, without("xpu", "b")) == "xpu"
    assert wanted_device("cpu", slots, {}) == "cpu"

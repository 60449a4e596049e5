"""Questions and answers, with a stand-in for ssh that runs what it is given on this machine."""

import time

import pytest

from launcher.hosts.ssh import call_host, call_hosts


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Put a program named ssh before all others; its text is what it does with the command."""

    def install(text):
        program = tmp_path / "ssh"
        program.write_text(f'#!/bin/bash\nhost="${{@: -2:1}}" command="${{@: -1}}"\n{text}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def test_an_answer_comes_with_the_hosts_clock(ssh, tmp_path):
    ssh('echo "a banner" >&2; exec bash -c "$command"')
    question = ("sweep", {"lease": str(tmp_path / "lease")})
    answers = call_hosts({"a": question, "b": question}, 60)
    assert list(answers) == ["a", "b"]
    for answer in answers.values():
        assert answer.error == ""
        assert answer.content == {"killed": 0, "left": []}
        assert abs(answer.skew_seconds) < 1


def test_a_host_that_cannot_be_reached_says_why(ssh):
    ssh('echo; echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255')
    answer = call_host("b", "sweep", {}, 60)
    assert answer.content == {}
    assert answer.error == "ssh: connect to host b port 22: Connection refused"
    assert answer.skew_seconds is None


def test_a_host_that_answers_nothing_is_waited_for_so_long(ssh):
    ssh("exec sleep 60")
    assert call_host("b", "sweep", {}, 0.3).error == "no answer within 0.3 s"


MEGABYTE = "head -c 1000000 /dev/zero | tr '\\0' x"


@pytest.mark.parametrize(
    "before",
    [
        f"{MEGABYTE} >&2",
        f"{MEGABYTE}; echo",
        "echo welcome; echo 7; echo '[]'; echo '\"quoted\"'",
        "printf '\\377\\n'; printf '\\377\\n' >&2",
        "sleep 30 & sleep 30 >&2 2>/dev/null &",
    ],
    ids=["much on stderr", "much on stdout", "greetings", "not UTF-8", "a process that stays"],
)
def test_what_a_host_says_beside_its_answer_is_no_answer(ssh, before):
    ssh(f"""{before}
        echo "{{\\"clock\\": $(date +%s.%N)}}"; cat > /dev/null
        echo; echo '{{"killed": 3, "left": []}}'; echo logout""")
    began = time.monotonic()
    answer = call_host("b", "sweep", {"lease": "y" * 200_000}, 20)
    assert (answer.content, answer.error) == ({"killed": 3, "left": []}, "")
    assert abs(answer.skew_seconds) < 1
    assert time.monotonic() - began < 15


def test_the_reason_is_the_last_line_however_much_came_before(ssh):
    ssh(f'{MEGABYTE} >&2; echo >&2; echo "Permission denied" >&2; exit 255')
    assert call_host("b", "sweep", {}, 20).error == "Permission denied"


@pytest.mark.slow
def test_what_ssh_started_ends_with_it(ssh, tmp_path):
    ssh(f"(sleep 2; touch {tmp_path}/late) & wait")
    assert call_host("b", "sweep", {}, 0.5).error == "no answer within 0.5 s"
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_nobody_to_ask_is_nothing_to_do():
    assert call_hosts({}, 1) == {}

import pytest

from launcher.run.causes import AttemptOutcome, describe_failure, next_action


def state(status, reason="", retry=True):
    return {"status": status, "step": 7, "reason": reason, "retry": retry, "attempt": "1"}


@pytest.mark.parametrize(
    ("said", "asked", "expected"),
    [
        (state("done"), False, "done"),
        (state("done"), True, "done"),
        (state("preempted"), True, "stopped"),
        (state("preempted"), False, "again"),
        (state("failed"), False, "again"),
        (state("failed"), True, "stopped"),
        (state("failed", retry=False), False, "over"),
        (state("running"), False, "again"),
        (state("running"), True, "stopped"),
        (None, False, "again"),
        (None, True, "stopped"),
    ],
)
@pytest.mark.parametrize("exit_code", [0, 1, None])
def test_the_state_decides_whatever_the_exit_code(said, asked, expected, exit_code):
    evidence = AttemptOutcome(said, exit_code=exit_code)
    assert next_action(evidence, asked_to_stop=asked) == expected


@pytest.mark.parametrize(
    ("evidence", "sentence"),
    [
        (AttemptOutcome(state("running"), stalled_seconds=61.2), "nothing moved for 61 s"),
        (AttemptOutcome(state("running"), [("b", 255)]), "the session on b broke off"),
        (
            AttemptOutcome(state("running"), [("b", 247)]),
            "a process on b was ended by SIGKILL, often",
        ),
        (
            AttemptOutcome(state("running"), [("b", 137)]),
            "a process on b was ended by SIGKILL, often",
        ),
        (AttemptOutcome(None, [("b", 138)]), "a process on b was ended by SIGUSR1"),
        (
            AttemptOutcome(state("preempted"), [("b", 75)]),
            "a host was told to leave; all ranks saved",
        ),
        (AttemptOutcome(state("failed", "the disk is full"), [("a", 1)]), "the disk is full"),
        # Whoever died first knows; the partner only lost it.
        (
            AttemptOutcome(state("failed", "Connection closed by peer"), [("b", 247)]),
            "ended by SIGKILL",
        ),
        (
            AttemptOutcome(state("failed", "Connection closed by peer"), [("a", 1), ("b", 247)]),
            "a process on b was ended by SIGKILL",
        ),
        # A partner that aborts, as NCCL's watchdog does, follows from what the first one says.
        (
            AttemptOutcome(state("failed", "the disk is full"), [("a", 1), ("b", 250)]),
            "the disk is full",
        ),
        (
            AttemptOutcome(state("failed", "Connection closed by peer"), [("b", 1)]),
            "lost the connection",
        ),
        (
            AttemptOutcome(state("failed", "Timed out waiting 20000ms"), [("a", 1)]),
            "run.timeout_seconds",
        ),
        (
            AttemptOutcome(None, [("b", 1)], last_line="ImportError: x"),
            "exit code 1: ImportError: x",
        ),
        (AttemptOutcome(None, exit_code=3), "exit code 3 and no word of why"),
        (AttemptOutcome(None), "the launcher ended it"),
    ],
)
def test_the_cause_is_one_sentence(evidence, sentence):
    assert sentence in describe_failure(evidence)
    assert "\n" not in describe_failure(evidence)

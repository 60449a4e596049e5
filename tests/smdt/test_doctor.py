import pytest

from data_shards.errors import UserError
from smdt import doctor
from smdt.doctor import Finding, examine


def test_what_is_needed_and_missing_fails_with_its_name(monkeypatch):
    found = [Finding("torch", "2"), Finding("dali", "not installed", "install the lock")]
    monkeypatch.setattr(doctor, "findings", lambda: found)
    with pytest.raises(UserError, match="dali"):
        examine(None)


def test_what_is_only_useful_does_not_fail(monkeypatch, capsys):
    found = [Finding("C++ compiler", "none", "install g++", needed=False)]
    monkeypatch.setattr(doctor, "findings", lambda: found)
    examine(None)
    assert "install g++" in capsys.readouterr().out

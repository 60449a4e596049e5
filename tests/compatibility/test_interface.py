import json
from pathlib import Path

import pytest

from tests.compatibility.interface import interface

VERSIONS = sorted(Path(__file__).parent.glob("interface-*.json"))
GONE: dict[str, str] = {}
"""What a version had and is no more, with the line of the change log that says so."""


@pytest.fixture(scope="module")
def now():
    return json.loads(json.dumps(interface()))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.stem)
def test_nothing_that_users_hold_is_gone_or_means_something_else(version, now):
    changed = []
    for kind, names in json.loads(version.read_text()).items():
        for name, before in names.items():
            after = now[kind].get(name)
            may_grow = kind in ("commands", "sections") and after is not None
            kept = set(before) <= set(after) if may_grow else before == after
            if not kept:
                changed.append(f"{kind}: {name}: {before} is {after} now")
    assert [line for line in changed if line.split(": ")[1] not in GONE] == []


def test_there_is_a_version_to_compare_with():
    assert VERSIONS

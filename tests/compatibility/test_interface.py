import json
from pathlib import Path

import pytest

from tests.compatibility.interface import REQUIRED, interface

VERSIONS = sorted(Path(__file__).parent.glob("interface-*.json"))
GONE: dict[str, str] = {}
"""What a version had and is no more, with the line of the change log that says so."""


def lost(before, after):
    """What users of one interface would miss in another, a line each."""
    for kind, names in before.items():
        for name, words in names.items():
            now = after[kind].get(name)
            if now is None:
                yield f"{kind}: {name}"
                continue
            yield from (f"{kind}: {name}: {word}" for word in set(words) - set(now))
            added = [word for word in set(now) - set(words) if word.endswith(REQUIRED)]
            yield from (f"{kind}: {name}: {word} is new" for word in added)
    for key in after["yaml"].keys() - before["yaml"].keys():
        if REQUIRED in after["yaml"][key] and key.rpartition(".")[0] in before["yaml"]:
            yield f"yaml: {key} is new and has no default"


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.stem)
def test_nothing_that_users_hold_is_gone_or_means_something_else(version):
    assert [
        each for each in lost(json.loads(version.read_text()), interface()) if each not in GONE
    ] == []


def test_a_loss_is_seen():
    now = interface()
    assert list(lost(now, now)) == []

    def without(kind, name, word):
        return {
            **now,
            kind: {**now[kind], name: [each for each in now[kind][name] if each != word]},
        }

    for kind, name, word in [
        ("commands", "smdt report", f"<folder> {REQUIRED}"),
        ("commands", "smdt", "--version"),
        ("yaml", "retrieval model.width", "default 128"),
        ("yaml", "retrieval aerial", 'may be "polar"'),
        ("metrics", "smdt_recall (gauge)", "k"),
    ]:
        assert word in now[kind][name], f"{name} has no {word}"
        assert f"{kind}: {name}: {word}" in list(lost(now, without(kind, name, word)))
    demanding = {**now, "commands": {**now["commands"], "smdt doctor": [f"--must {REQUIRED}"]}}
    assert f"commands: smdt doctor: --must {REQUIRED} is new" in list(lost(now, demanding))

"""Plain English in what people read: docstrings, comments, help, messages and pages.

Write as PyTorch's and DeepSpeed's pages do: direct, one thought a sentence, the field's terms.
`INSTEAD` has the phrases that read as a translation, each with what to write instead. Examples:

- `A run goes on from its checkpoint.`: `A run resumes from its checkpoint.`
- `heading_deg: None: nobody knows.`: `heading_deg: None: unknown.`
- `The files stand beside the page.`: `The files are next to the page.`
- `What became of each weight.`: `Whether each weight was loaded.`
- `InputError: it is no run folder.`: `InputError: it is not a run folder.`
- `Ranks do not know of each other's damage.`: `A rank has no list of the others' damage.`

A text in Python is a comment, or a string with a space in it, so that names and keys may have these
words. A phrase that has to stay is in `KEPT`.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "data_shards", "launcher", "monitoring", "smdt")
LOG = "docs/verification.md"
"""Dated results of test runs, not rewritten later."""
PAGES = sorted(
    {
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "benchmarks/RESULTS.md",
        *(f"docs/{page.name}" for page in Path(ROOT, "docs").glob("*.md")),
    }
    - {LOG}
)

INSTEAD = {
    r"(leaves?|leaving|left) (\w+ ){0,2}away": "remove, omit",
    r"mend(s|ed|ing)?": "fix, repair",
    r"(no|some|any|every)body": "the subject: no process, a user, all clients",
    r"(who|which)ever": "the subject: the process that, any host",
    r"(is|are|was|were|with|have|has|in) no \w+( \w+)? and no": "neither ... nor, without",
    r"(becomes?|became) of": "what happens to, the result of",
    r"(comes?|came) to(?! (a stand|an end|its|life))": "amount to, the result is",
    r"(says?|said|knows?) of": "say about, record for",
    r"of itself": "by itself, or the subject",
    r"stand-ins?": "replacement",
    r"in (its|whose|their) stead": "instead",
    r"(told|tells?) of": "report, publish",
    r"by (a|an|an unknown|any) headings?": "at a heading",
    r"(go|goes|going|went|gone) on": "resume, continue",
    r"(anew|afresh)": "again, from the beginning",
    r"besides?": "next to, in addition to, with, during",
    r"begun": "started",
    r"(taken|(takes?|took) (it|this|that|one|them|neither)) for(?! granted)": "treat as",
    r"in vain": "without effect",
    r"(stands?|stood) (in|on|at|there|where|together|between|twice|next)": "is, has, appears",
    r"hand(s|ed) on": "pass on",
    r"to be had": "available",
    r"likewise": "also, the same",
    r"so (many|much|few)(?= (?!that\b))": "this many, N",
    r"(?<!here\s)(is|are|was|were) (no|none)(?! (longer|more|better|larger|other)\b)": "is not a",
}
"""Phrases as regular expressions, whole words with any white space between them: what to write."""

KEPT = {
    ("smdt/telemetry/metrics.py", "a stand-in"),  # an exported help text, as old as the metric
    ("docs/training.md", "## Going on"),  # a heading that other pages link to
}
"""File and text, with a foreign phrase at its end, of what has to stay."""


def _pattern(phrase: str) -> str:
    """Return a phrase as one group."""
    return r"\b(" + re.sub(r"\((?!\?)", "(?:", phrase).replace(" ", r"\s+") + r")\b"


FOUND = re.compile("|".join(map(_pattern, INSTEAD)), re.IGNORECASE)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string; what an f-string fills in is `{}`."""
    nodes = list(ast.walk(tree))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    for node in joined:
        pieces = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        yield node.lineno, "".join(map(str, pieces))
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment; comments on adjacent lines are one text."""
    first, last, lines = 0, -1, [""]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, text = token.start[0], token.string.lstrip("# ")
            if line != last + 1:
                yield first, "\n".join(lines)
                first, lines = line, []
            last = line
            lines.append(text)
    yield first, "\n".join(lines)


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of all that people read in a file."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield 1, content
        return
    yield from ((line, text) for line, text in strings(ast.parse(content)) if " " in text)
    yield from comments(content)


def foreign(name: str, text: str, first: int = 1) -> Iterator[str]:
    """Yield place, phrase and advice of each foreign phrase in a text that begins at a line."""
    for match in FOUND.finditer(text):
        kept = any(name == file and text[: match.end()].endswith(end) for file, end in KEPT)
        if kept or match[0].endswith("None"):
            continue
        line = first + text.count("\n", 0, match.start())
        phrase = " ".join(match[0].split())
        assert match.lastindex is not None
        yield f"{name}:{line}: {phrase!r}; write: {list(INSTEAD.values())[match.lastindex - 1]}"


def test_texts():
    files = [file for package in PACKAGES for file in sorted(Path(ROOT, package).rglob("*.py"))]
    files += [ROOT / page for page in PAGES]
    assert len(files) > 250
    found = [
        line
        for file in files
        for first, text in texts(file)
        for line in foreign(str(file.relative_to(ROOT)), text, first)
    ]
    assert not found, "\n".join(["", *found])


def test_kept_is_needed():
    for name, end in KEPT:
        assert any(end in text for _, text in texts(ROOT / name)), f"{name} no longer has {end!r}"


CODE = """
'''One line.

The run goes
on from it; there is no file, and it is no longer than None is None.
'''
stand_in = {"stand-in": 1}  # names and keys are free
# Nobody
# knows.
raise ValueError(f"{stand_in} is no " "folder")
"""


def test_what_is_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(CODE)
    found = [line for first, text in texts(file) for line in foreign("m.py", text, first)]
    assert sorted(line.split(";")[0] for line in found) == [
        "m.py:10: 'is no'",
        "m.py:4: 'goes on'",
        "m.py:8: 'Nobody'",
    ]

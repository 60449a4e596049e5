"""Names for other systems: what Kubernetes, Slurm, Prometheus, file systems and shells accept.

A name that a system accepts stays as it is. Any other is changed and gets a hash of the original
behind it, so that different names stay different.
"""

import hashlib
import ipaddress
import re
import unicodedata

KUBERNETES_LONGEST = 63
"""Characters of a DNS-1035 label, which names a JobSet, its jobs, pods and services."""
FILE_LONGEST = 200
"""Longest file name in bytes; file systems allow 255, and suffixes are appended."""
SLURM_LONGEST = 100
"""Characters of a job's name; Slurm has no limit, its tables have columns."""

_HASH = re.compile(r"-[0-9a-f]{8}\Z")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, halves of characters, ends of lines."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that let a terminal show what follows in another order."""


def kubernetes_name(name: str, longest: int = KUBERNETES_LONGEST) -> str:
    """Return a DNS-1035 label: lower-case letters, digits and hyphens, a letter first.

    Args:
        name: any text.
        longest: characters that it may have, at least 16; what Kubernetes appends needs the rest.
    """
    ascii_letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    label = re.sub(r"[^a-z0-9-]+", "-", ascii_letters.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"run-{label}".strip("-")
    return _distinct(name, label, longest)


def slurm_name(name: str) -> str:
    """Return a name of a job: letters, digits, `.`, `_`, `-`; up to 100 characters."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "run"
    return _distinct(name, word, SLURM_LONGEST)


def file_name(name: str) -> str:
    """Return a name of a file, without suffix: no separator, nothing hidden, up to 200 bytes."""
    replaced = "".join("-" if char == "/" or _is_unprintable(char) else char for char in name)
    word = replaced.lstrip(".-") or "unnamed"
    return _distinct(name, word, FILE_LONGEST)


def label_value(text: str) -> str:
    """Return a value of a Prometheus label: any text in UTF-8, halves of characters replaced."""
    return "".join("\ufffd" if unicodedata.category(char) == "Cs" else char for char in text)


def printable(text: str) -> str:
    """Return a text in one line that is safe to print: control characters are escaped."""
    return "".join(
        ascii(char)[1:-1] if _is_unprintable(char) or char in _DIRECTIONS else char for char in text
    )


def is_variable(name: str) -> bool:
    """Whether a text is a valid shell variable name."""
    return _VARIABLE.fullmatch(name) is not None


def is_host(name: str) -> bool:
    """Whether this is the name or IPv4 address of a host, and nothing more to ssh and pdsh.

    Users, ports, ranges (`node-[0-3]`), options (`-o...`) and IPv6 addresses are not.
    """
    return _HOST.fullmatch(name) is not None


def is_address(name: str) -> bool:
    """Whether this is the name or the IP address of a host."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return is_host(name)
    return "%" not in name


def unprintable(text: str) -> str:
    """Return the first line break, control character or surrogate.

    Returns:
        The character, empty if `text` has none.
    """
    return next(filter(_is_unprintable, text), "")


def _is_unprintable(char: str) -> bool:
    return unicodedata.category(char) in _UNPRINTABLE


def _distinct(name: str, valid: str, longest: int) -> str:
    """Return `valid` if it is `name`, else its beginning and a hash of `name`.

    A valid name that ends like a hash gets one too: it could be what another name becomes.
    """
    fits = len(valid.encode()) <= longest
    if valid == name and fits and _HASH.search(name) is None:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    kept = valid.encode()[: longest - len(digest) - 1].decode("utf-8", "ignore")
    return f"{kept.rstrip('-')}-{digest}"

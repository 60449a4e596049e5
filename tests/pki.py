"""Certificates for a test: an authority, a server and a client that it has signed, a stranger."""

import subprocess
from pathlib import Path

from tests.system_packages import require

# Python 3.13 and later check what a certificate may be used for.
AUTHORITY = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
SIGNED = (
    *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"),
    *("-addext", "keyUsage=critical,digitalSignature"),
)


def make_pki(folder: Path) -> None:
    """Write `ca`, `server`, `client` and `stranger`, each as .pem and .key."""
    require("openssl")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for name in ("ca", "stranger"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        _openssl("req", "-x509", *curve, "-subj", f"/CN={name}", *AUTHORITY, *files)
    signer = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"]
    for name in ("server", "client"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        _openssl("req", "-x509", *curve, *signer, "-subj", f"/CN={name}", *SIGNED, *files)


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)

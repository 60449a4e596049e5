"""Certificates for a test: an authority, a server and a client that it has signed, a stranger."""

import subprocess
from pathlib import Path


def make_pki(folder: Path) -> None:
    """Write `ca`, `server`, `client` and `stranger`, each as .pem and .key."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for name in ("ca", "stranger"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        _openssl("req", "-x509", *curve, "-subj", f"/CN={name}", *files)
    signer = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"]
    for name in ("server", "client"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        address = ["-addext", "subjectAltName=IP:127.0.0.1"]
        _openssl("req", "-x509", *curve, *signer, "-subj", f"/CN={name}", *address, *files)


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)

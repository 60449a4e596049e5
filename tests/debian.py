"""A minimal Debian that reaches the package registries as this machine does."""

import os
import shutil
import ssl
import subprocess
from pathlib import Path

AUTHORITIES = "/etc/this-machine.pem"
"""Whom this machine trusts; not where a package would put its own list."""
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")
REGISTRY_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "http_proxy", "https_proxy", "no_proxy")
HOST_CACHE, CACHE = Path.home() / ".cache" / "uv", "/var/cache/uv"
"""What uv has downloaded, here and where `environment` says that it is mounted there."""


def make(root: Path, suite: str) -> None:
    """Make a Debian release in the folder `root`."""
    subprocess.run(
        ["debootstrap", "--variant=minbase", suite, root], check=True, capture_output=True
    )
    trusted = ssl.get_default_verify_paths().cafile
    if trusted is not None:
        shutil.copyfile(trusted, root / AUTHORITIES.removeprefix("/"))


def environment() -> dict[str, str]:
    """Return the variables with which programs in it reach the registries."""
    known = {name: os.environ[name] for name in REGISTRY_VARIABLES if name in os.environ}
    if ssl.get_default_verify_paths().cafile is not None:
        known |= dict.fromkeys(CERTIFICATE_VARIABLES, AUTHORITIES)
    return {**known, "UV_CACHE_DIR": CACHE}

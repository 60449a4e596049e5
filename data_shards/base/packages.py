"""Which packages are installed: some are needed by some commands only."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from data_shards.base.errors import InputError


def installed_version(package: str) -> str | None:
    """Return the version of a package, by the name that pip knows; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def require_package(module: str, description: str, requirement: str) -> None:
    """Check that a package is installed, without importing it.

    Args:
        module: that the package brings, such as `nvidia.dali`.
        description: begins the sentence of the error: the package, and what needs it.
        requirement: what pip installs.

    Raises:
        InputError: it is not installed.
    """
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that holds it is missing
        found = False
    if not found:
        raise InputError(f"{description} is not installed: pip install '{requirement}'.")

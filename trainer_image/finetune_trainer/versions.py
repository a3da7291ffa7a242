"""Versions of installed packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str, otherwise: str = "not installed") -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


def trainer_version() -> str:
    """The version of the trainer itself."""
    return version_of("finetune-operator", otherwise="unknown")

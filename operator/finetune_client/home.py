"""Folders of users, for paths that begin with ~."""

from __future__ import annotations

from pathlib import Path


def at_home(path: str | Path) -> Path:
    """A path whose ~ is a home folder; unchanged where there is no such user, or where this one has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)

"""The files that ``-f`` names: one, all of a folder, or standard input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from finetune_trainer.errors import ConfigError

SUFFIXES = frozenset({".json", ".yaml", ".yml"})
"""Files of a folder that kubectl reads, too."""


def expand(names: Iterable[str], *, recursive: bool = False) -> Iterator[str]:
    """The files, those of a folder in the order of their names.

    Raises:
        ConfigError: a folder cannot be read, or has no such file.
    """
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            yield name
            continue
        try:
            found = sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.suffix in SUFFIXES)
        except OSError as error:
            raise ConfigError([f"{name}: cannot read the folder: {error.strerror}"]) from None
        if not any(path.is_file() for path in found):
            deeper = "" if recursive else "; -R looks into the folders in it"
            raise ConfigError([f"{name}: there is no .yaml, .yml or .json file in this folder{deeper}"])
        yield from (str(path) for path in found if path.is_file())

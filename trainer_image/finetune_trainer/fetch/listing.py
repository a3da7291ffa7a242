"""The files behind an address, and which of them a job needs."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from finetune_trainer.fetch.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.fetch.download import RemoteFile

NO_PART_OF_A_MODEL = (
    "original/*", "onnx/*", "*.onnx", "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mlmodel", "*.npz",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.mp4", "*.pdf", ".*", "*/.*",
)  # fmt: skip
"""What repositories of models hold besides that is not for torch: often as much again as the weights."""

PICKLES = ("*.bin", "*.pt", "*.pth")
"""Weights in torch's older format; not fetched where there are safetensors."""


@dataclass(frozen=True)
class Listing:
    """A version of the files of an address."""

    origin: str
    """What the version is of, for people."""
    version: str
    """Sixteen hexadecimal digits."""
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Names:
    """The files that a job names, relative to its data set; none: it is a model, and takes what a model needs."""

    train_file: str | None = None
    validation_file: str | None = None

    def single(self, address: str) -> str:
        """The name of the only file.

        Raises:
            FetchError: train_file is no name of a file.
        """
        name = PurePosixPath(self.train_file or ".")
        if name == PurePosixPath() or not is_inside(str(name)):
            raise FetchError(
                "InvalidSpec",
                f"{address.partition('?')[0]} is one file: Dataset.train_file gives its name, and cannot be {str(name)!r}",
            )
        return str(name)

    def needed(self, found: Iterable[str]) -> list[str]:
        """Those of the files that the job needs.

        Raises:
            FetchError: the origin has names that would leave the folder.
        """
        names = sorted(found)
        if wrong := [name for name in names if not is_inside(name)]:
            raise FetchError("FetchFailed", f"the origin lists a file {wrong[0][:200]!r}, which is no path inside a folder")
        if self.train_file is not None:
            return [name for name in names if self._is_named(name)]
        names = [name for name in names if not any(fnmatch(name, pattern) for pattern in NO_PART_OF_A_MODEL)]
        pickles = PICKLES if any(name.endswith(".safetensors") for name in names) else ()
        return [name for name in names if not any(fnmatch(name, pattern) for pattern in pickles)]

    def _is_named(self, name: str) -> bool:
        wanted = [PurePosixPath(file) for file in (self.train_file, self.validation_file) if file is not None]
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in path.parts)
        return any(file == path or (file in path.parents and not hidden) for file in wanted)


def is_inside(name: str) -> bool:
    """Whether a name is a plain path below a folder."""
    parts = name.split("/")
    return bool(name) and "\\" not in name and "\0" not in name and not any(part in {"", ".", ".."} for part in parts)

"""What a file or folder of this machine is called on a claim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_client.errors import ClientError
from finetune_client.home import at_home


def target_name(path: str | Path) -> str:
    """Its name as it was typed, also where that is a link; that of the folder which is meant by ``.`` and ``..``."""
    typed = at_home(path)
    return typed.resolve().name if typed.name in {"", ".."} else typed.name


def require_different(paths: Sequence[str | Path]) -> None:
    """Look whether each file or folder has a name of its own on the claim.

    Raises:
        ClientError: two have the same one.
    """
    seen: dict[str, str | Path] = {}
    for path in paths:
        name = target_name(path)
        if name in seen:
            message = f"{seen[name]} and {path} would both be {name} on the claim"
            raise ClientError(message, "give one of them another name, or copy it to another folder: CLAIM:FOLDER")
        seen[name] = path
